"""Ancestral sampling draws from the distribution of the data."""

import pytest
import torch
from torch import Tensor

from models.samplers.ddpm import ddpm
from tests.models.samplers.known import SCHEDULE, drawn_distribution, gaussian_denoiser


@pytest.mark.parametrize("steps", [500, 1000])
def test_the_deviation_is_that_of_the_data(steps: int) -> None:
    _, deviation = drawn_distribution(ddpm, SCHEDULE, steps)
    assert abs(deviation - 0.5) < 5 / steps


def test_one_step_is_the_denoisers_own_guess() -> None:
    z_T = torch.ones(1, 1, dtype=torch.float64)
    guess = gaussian_denoiser(0.5)(z_T, torch.tensor([999])).z_0

    def never(_: int) -> Tensor:
        raise AssertionError("the last step adds no noise")

    torch.testing.assert_close(ddpm(gaussian_denoiser(0.5), z_T, SCHEDULE, 1, never), guess)


@pytest.mark.parametrize("steps", [0, 1001])
def test_other_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps={steps}: choose 1 to 1000"):
        ddpm(gaussian_denoiser(0.5), torch.ones(1, 1), SCHEDULE, steps, torch.zeros)
