import torch

from models.autoencoder import AutoencoderKL
from models.conditioners.masked_image import MaskedImage


def test_what_lies_in_the_hole_does_not_matter_and_the_mask_is_the_last_channel() -> None:
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(16, (1, 1), 1, 4, middle_attention=False).eval()
    conditioner = MaskedImage(autoencoder)
    masked = torch.randint(0, 256, (2, 4, 16, 16), dtype=torch.uint8)
    masked[:, 3] = 0
    masked[:, 3, :8] = 255
    given = conditioner(masked)
    assert given.shape == (2, 5, 8, 8)
    assert torch.equal(given[:, 4, :4], torch.ones(2, 4, 8)) and torch.equal(given[:, 4, 4:], -torch.ones(2, 4, 8))
    other = masked.clone()
    other[:, :3, :8] = 9
    assert torch.equal(given, conditioner(other))
    other[:, :3, 8:] = 9
    assert not torch.equal(given, conditioner(other))
    image = masked[:, :3].float() * (masked[:, 3:] == 0) / 127.5 - 1  # the hole is black, as the published model has it
    torch.testing.assert_close(given[:, :4], autoencoder.encode(image).mode())
