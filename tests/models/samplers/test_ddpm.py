"""Ancestral sampling draws from the distribution of the data."""

import pytest
import torch
from torch import Tensor

from models.samplers.ddpm import ddpm
from tests.models.samplers.known import SCHEDULE, gaussian_denoiser


def sample(steps: int, count: int = 20_000) -> Tensor:
    generator = torch.Generator().manual_seed(0)

    def draw(_: int) -> Tensor:
        return torch.randn(count, 1, generator=generator, dtype=torch.float64)

    return ddpm(gaussian_denoiser(0.5), draw(0), SCHEDULE, steps, draw)


@pytest.mark.parametrize("steps", [500, 1000])
def test_the_deviation_is_that_of_the_data(steps: int) -> None:
    assert abs(sample(steps).std().item() - 0.5) < 0.01


def test_one_step_is_the_denoisers_own_guess() -> None:
    z_T = torch.ones(1, 1, dtype=torch.float64)
    alpha_bar = SCHEDULE.alpha_bar[999]
    guess = (z_T - (1 - alpha_bar).sqrt() * gaussian_denoiser(0.5)(z_T, torch.tensor([999]))) / alpha_bar.sqrt()

    def never(_: int) -> Tensor:
        raise AssertionError("the last step adds no noise")

    torch.testing.assert_close(ddpm(gaussian_denoiser(0.5), z_T, SCHEDULE, 1, never), guess)


@pytest.mark.parametrize("steps", [0, 1001])
def test_other_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps={steps}: choose 1 to 1000"):
        sample(steps, 1)
