"""Laws of what a network's output means."""

import pytest
import torch
from torch import Tensor

from models.conditioners import Condition
from models.guidance import classifier_free
from models.prediction import PREDICTIONS, as_denoiser
from models.schedule import linear

SCHEDULE = linear(0.00085, 0.012)
ZERO_TERMINAL = linear(0.00085, 0.012, zero_terminal_snr=True)
T = torch.tensor([0, 400, 998])
Z_0, EPS = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_the_target_gives_back_what_the_latent_was_made_of(name: str) -> None:
    prediction = PREDICTIONS[name]
    alpha, sigma = SCHEDULE.roots(T, Z_0)
    output = prediction.target(Z_0, EPS, alpha, sigma)
    z_0, eps = prediction.estimate(output, SCHEDULE.add_noise(Z_0, EPS, T), alpha, sigma)
    torch.testing.assert_close(z_0, Z_0)
    torch.testing.assert_close(eps, EPS)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_any_output_explains_z_t(name: str) -> None:
    z_t = SCHEDULE.add_noise(Z_0, EPS, T)
    z_0, eps = as_denoiser(lambda z_t, t: z_t.sin(), PREDICTIONS[name], SCHEDULE)(z_t, T)
    torch.testing.assert_close(SCHEDULE.add_noise(z_0, eps, T), z_t)


def test_the_velocity_is_the_published_one() -> None:
    # Salimans & Ho 2022, App. D: with alpha = cos(phi), sigma = sin(phi), v is the derivative of z_phi by phi.
    phi = torch.tensor(0.7, dtype=torch.float64)
    _, v = torch.func.jvp(lambda p: p.cos() * Z_0 + p.sin() * EPS, (phi,), (torch.ones_like(phi),))
    torch.testing.assert_close(PREDICTIONS["v"].target(Z_0, EPS, phi.cos(), phi.sin()), v)


@pytest.mark.parametrize("name", ["v", "z_0"])
def test_at_zero_snr_the_latent_is_noise_and_the_rest_a_guess(name: str) -> None:
    t = torch.tensor([999, 999, 999])
    z_t = ZERO_TERMINAL.add_noise(Z_0, EPS, t)
    assert torch.equal(z_t, EPS)
    z_0, eps = as_denoiser(lambda z_t, t: z_t.sin(), PREDICTIONS[name], ZERO_TERMINAL)(z_t, t)
    assert torch.equal(eps, EPS)
    assert torch.equal(z_0.abs(), EPS.sin().abs())


def test_noise_can_not_be_predicted_where_the_schedule_ends_at_zero_snr() -> None:
    with pytest.raises(ValueError, match=r"zero SNR.*choose v or z_0 prediction"):
        as_denoiser(lambda z_t, t: z_t, PREDICTIONS["epsilon"], ZERO_TERMINAL)


def test_an_output_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"output has shape \[3, 8, 2, 2\] and z_t \[3, 4, 2, 2\]"):
        as_denoiser(lambda z_t, t: torch.cat([z_t, z_t], 1), PREDICTIONS["v"], SCHEDULE)(EPS, T)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_guidance_of_outputs_is_guidance_of_the_noise(name: str) -> None:
    prediction, scale = PREDICTIONS[name], 3.0
    values = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64).view(3, 1, 1, 1)
    condition, opposite = Condition(context=values), Condition(context=-values)

    def network(z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return z_t.sin() + condition.context

    def eps(condition: Condition) -> Tensor:
        return as_denoiser(lambda z_t, t: network(z_t, t, condition), prediction, SCHEDULE)(Z_0, T).eps

    guided = as_denoiser(classifier_free(network, condition, opposite, scale), prediction, SCHEDULE)(Z_0, T)
    torch.testing.assert_close(guided.eps, eps(opposite) + scale * (eps(condition) - eps(opposite)))
