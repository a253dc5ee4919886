"""Laws of vector quantisation, and of the first stage that rests on it."""

import pytest
import torch

from models.autoencoder import AutoencoderVQ
from models.codebook import Codebook
from models.latent_diffusion import FirstStage


@pytest.fixture
def codebook() -> Codebook:
    torch.manual_seed(0)
    made = Codebook(entries=17, width=3)
    torch.nn.init.normal_(made.entries.weight)
    return made


def latents() -> torch.Tensor:
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))


def test_every_position_gets_the_nearest_entry(codebook: Codebook) -> None:
    z = latents()
    indices = codebook.nearest(z)
    flat = z.movedim(1, -1).reshape(-1, 3)
    assert torch.equal(indices.flatten(), torch.cdist(flat, codebook.entries.weight).argmin(1))
    torch.testing.assert_close(codebook(z).latents, codebook.look_up(indices))


def test_quantising_twice_changes_nothing(codebook: Codebook) -> None:
    once = codebook(latents())
    assert torch.equal(codebook.nearest(once.latents), once.indices)


def test_the_gradient_goes_straight_through(codebook: Codebook) -> None:
    z = latents().requires_grad_()
    weight = torch.randn(2, 3, 4, 5)
    (codebook(z).latents * weight).sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, weight)
    assert codebook.entries.weight.grad is None


@pytest.mark.parametrize(("published", "on_codebook", "on_encoder"), [(False, 1.0, 0.25), (True, 0.25, 1.0)])
def test_the_commitment_weighs_the_encoders_share(published: bool, on_codebook: float, on_encoder: float) -> None:
    torch.manual_seed(0)
    codebook = Codebook(17, 3, commitment=0.25, published_loss=published)
    z = latents().requires_grad_()
    codebook(z).loss.backward()
    e, count = codebook.look_up(codebook.nearest(z)).detach(), z.numel()
    torch.testing.assert_close(z.grad, on_encoder * 2 * (z - e).detach() / count)
    gradient = torch.zeros_like(codebook.entries.weight)
    difference = (e - z.detach()).movedim(1, -1).reshape(-1, 3)
    gradient.index_add_(0, codebook.nearest(z).flatten(), on_codebook * 2 * difference / count)
    torch.testing.assert_close(codebook.entries.weight.grad, gradient)


def test_perplexity_counts_the_entries_in_use(codebook: Codebook) -> None:
    assert codebook.perplexity(torch.full((2, 4, 4), 3)).item() == pytest.approx(1)
    assert codebook.perplexity(torch.arange(17).view(1, 1, 17)).item() == pytest.approx(17)
    assert codebook.usage(torch.full((2, 4, 4), 3)).item() == pytest.approx(1 / 17)
    assert codebook.usage(torch.arange(17).view(1, 1, 17)).item() == 1
    even = torch.tensor([0, 5, 9, 16] * 4).view(2, 2, 4)
    assert codebook.perplexity(even).item() == pytest.approx(4)


def test_the_nearest_entry_is_found_in_bfloat16_too(codebook: Codebook) -> None:
    """Entries that differ by less than bfloat16 can tell of their distances."""
    with torch.no_grad():
        codebook.entries.weight.copy_(100 + torch.arange(17.0)[:, None] / 2)
    codebook.to(torch.bfloat16)
    z = codebook.look_up(torch.arange(17).view(1, 1, 17))
    assert torch.equal(codebook.nearest(z).flatten(), torch.arange(17))


def small(middle_attention: bool = True) -> AutoencoderVQ:
    torch.manual_seed(0)
    return AutoencoderVQ(16, (1, 2), 1, 3, codebook_entries=32, middle_attention=middle_attention)


@pytest.mark.parametrize("middle_attention", [True, False])
def test_gradient_reaches_every_parameter_of_the_first_stage(middle_attention: bool) -> None:
    autoencoder = small(middle_attention)
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    latents, penalty, statistics, (z, indices) = autoencoder.regularised(x, torch.zeros(2, 3, 8, 8))
    assert 1 < statistics["codebook_perplexity"] <= 32
    assert torch.equal(autoencoder.codebook.nearest(z), indices) and not z.requires_grad
    (autoencoder.to_image(autoencoder.last_features(latents)).sub(x).square().sum() + 100 * penalty).backward()
    untouched = [n for n, p in autoencoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in untouched if not name.endswith("key.bias")] == []
    assert any("middle.1" in name for name, _ in autoencoder.named_parameters()) == middle_attention


def test_what_training_decodes_is_what_is_decoded_of_the_latents() -> None:
    autoencoder, x = small(), torch.rand(2, 3, 16, 16) * 2 - 1
    trained = autoencoder.to_image(autoencoder.last_features(autoencoder.regularised(x, torch.zeros(0)).latents))
    torch.testing.assert_close(autoencoder.decode(autoencoder.latents(x, torch.zeros(0))), trained)
    with pytest.raises(ValueError, match=r"\[B, 3, h, w\]"):
        autoencoder.decode(torch.zeros(1, 4, 8, 8))


def test_diffusion_works_on_latents_before_quantisation() -> None:
    autoencoder = small()
    first_stage = FirstStage(autoencoder, scale=2.0)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    z = first_stage.encode(images, torch.randn(2, 3, 8, 8))
    torch.testing.assert_close(z, 2.0 * autoencoder.encode(images))
    torch.testing.assert_close(first_stage.decode(z), autoencoder.decode(z / 2.0).clamp(-1, 1))
