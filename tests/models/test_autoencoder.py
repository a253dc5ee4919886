"""Laws of the KL first stage."""

from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from models.autoencoder import AutoencoderKL, Posterior

BASE: dict[str, Any] = {
    "channels": 16,
    "channel_multipliers": (1, 3),
    "residual_blocks": 1,
    "latent_channels": 4,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "patches": {"patch_size": 4},
    "attention on a level": {"attention_levels": (1,)},
    "wider inside": {"z_channels": 6},
    "one level": {"channel_multipliers": (3,)},
    "grey": {"in_channels": 1},
}


@pytest.fixture(params=list(VARIANTS))
def autoencoder(request: pytest.FixtureRequest) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(**{**BASE, **VARIANTS[request.param]})


def images(autoencoder: AutoencoderKL) -> torch.Tensor:
    shape = (2, autoencoder.in_channels, 16, 32)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_shapes_follow_the_downsampling(autoencoder: AutoencoderKL) -> None:
    x, f = images(autoencoder), autoencoder.downsampling
    posterior = autoencoder.encode(x)
    assert posterior.mean.shape == posterior.log_variance.shape == (2, 4, 16 // f, 32 // f)
    assert autoencoder.decode(posterior.mode()).shape == x.shape


def test_gradient_reaches_every_parameter(autoencoder: AutoencoderKL) -> None:
    x = images(autoencoder)
    posterior = autoencoder.encode(x)
    z = posterior.sample(torch.randn_like(posterior.mean))
    (autoencoder.decode(z).sub(x).square().sum() + posterior.kl().sum()).backward()
    # Rounding alone gives gradients of 1e-6 to what has no effect.
    untouched = [n for n, p in autoencoder.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-4]
    # A constant added to every key cancels in the softmax.
    assert [name for name in untouched if not name.endswith("key.bias")] == []


def test_samples_do_not_influence_each_other(autoencoder: AutoencoderKL) -> None:
    x = images(autoencoder)
    with torch.no_grad():
        z = autoencoder.encode(x).mode()
        torch.testing.assert_close(z[1:], autoencoder.encode(x[1:]).mode(), rtol=0, atol=1e-5)
        torch.testing.assert_close(autoencoder.decode(z)[1:], autoencoder.decode(z[1:]), rtol=0, atol=1e-5)


def test_the_last_layer_is_the_one_whose_change_moves_the_image_alone() -> None:
    autoencoder = AutoencoderKL(**BASE, patch_size=2)
    z = torch.randn(1, 4, 4, 4)
    before = autoencoder.decode(z)
    with torch.no_grad():
        autoencoder.last_layer.mul_(2)
    bias = autoencoder.decoder.head.bias
    assert bias is not None
    folded_bias = torch.nn.functional.pixel_shuffle(bias[None, :, None, None].expand(1, -1, 8, 8), 2)
    torch.testing.assert_close(autoencoder.decode(z), 2 * before - folded_bias)


def test_kl_is_that_of_two_normal_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 3, 4, 5, 5, generator=generator)
    ours = Posterior(mean, log_variance).kl()
    theirs = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(ours, theirs)
    assert Posterior(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)).kl().item() == 0.0


def test_samples_have_the_posterior_s_mean_and_deviation() -> None:
    noise = torch.randn(100_000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    posterior = Posterior(torch.tensor(3.0), torch.tensor(0.25).log())
    samples = posterior.sample(noise)
    assert abs(samples.mean().item() - 3.0) < 0.01
    assert abs(samples.std().item() - 0.5) < 0.01
    assert posterior.sample(torch.zeros(1)).item() == posterior.mode().item() == 3.0


def test_an_extreme_log_variance_stays_finite() -> None:
    autoencoder = AutoencoderKL(**BASE)
    with torch.no_grad():
        autoencoder.to_moments.bias.copy_(torch.tensor([0.0] * 4 + [1e6, -1e6, 1e6, -1e6]))  # type: ignore[union-attr]
        posterior = autoencoder.encode(torch.zeros(1, 3, 16, 16))
    assert posterior.kl().isfinite().all()
    assert posterior.log_variance.amax().item() == 20.0
    assert posterior.log_variance.amin().item() == -30.0


def test_bad_shapes_are_named() -> None:
    autoencoder = AutoencoderKL(**BASE, patch_size=2)
    for shape in [(1, 3, 18, 16), (1, 3, 16, 18), (1, 4, 16, 16), (3, 16, 16)]:
        with pytest.raises(ValueError, match="divisible by 4"):
            autoencoder.encode(torch.zeros(shape))
    for shape in [(1, 3, 4, 4), (4, 4, 4)]:
        with pytest.raises(ValueError, match=r"\[B, 4, h, w\]"):
            autoencoder.decode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channel_multipliers": ()}, "at least one multiplier"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"attention_levels": (2,)}, r"\[2\].*to 1"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderKL(**{**BASE, **settings})
