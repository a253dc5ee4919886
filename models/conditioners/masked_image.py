"""A picture with a hole, for inpainting."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.autoencoder import AutoencoderKL, AutoencoderVQ
from models.conditioners import Conditioner
from models.conditioners.image import to_float


class MaskedImage(Conditioner):
    """The latent of an image with a black hole, and the hole's mask, -1 or 1, at the latent's size (LDM Sec. 4.5).

    Both are as the published model has them. Frozen: it belongs outside the module that is trained. autoencoder: the
    first stage's; its latents stay unscaled, and a KL posterior gives its mode, so that a picture has one condition.
    """

    part = "channels"

    def __init__(self, autoencoder: AutoencoderKL | AutoencoderVQ) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, masked: Tensor) -> Tensor:
        """uint8 [B, 4, H, W], RGB and the mask (255: to be filled) -> float [B, C + 1, H / f, W / f]."""
        hole = masked[:, 3:] > 127
        images, mask = to_float(masked[:, :3].masked_fill(hole, 0)), hole.float() * 2 - 1
        f = self.autoencoder.downsampling
        mode = torch.zeros(len(masked), self.autoencoder.latent_channels, *(side // f for side in masked.shape[2:]))
        z = self.autoencoder.latents(images, mode.to(images))  # [B, C, h, w]
        return torch.cat([z, F.interpolate(mask, size=z.shape[-2:]).to(z)], dim=1)

    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A first stage's weights as this module's."""
        return {f"autoencoder.{name}": tensor for name, tensor in state.items()}
