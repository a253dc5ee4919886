"""DPM-Solver++(2M) against a closed form."""

from itertools import pairwise

import pytest
import torch

from models.samplers.dpm_solver import dpm_solver, solver_timesteps
from models.schedule import NoiseSchedule
from tests.models.samplers.known import SCHEDULE, even_in_log_snr, exact_end, gaussian_denoiser


def error(steps: int, schedule: NoiseSchedule = SCHEDULE) -> float:
    z_T = torch.ones(1, 1, dtype=torch.float64)
    z = dpm_solver(gaussian_denoiser(0.5, schedule), z_T, schedule, steps)
    return (z - exact_end(z_T, 999, 0, 0.5, schedule)).abs().item()


def test_it_is_of_second_order() -> None:
    # In half the log-SNR the method's steps are even here; 999 is divisible by each number: no timestep is rounded.
    errors = [error(steps, even_in_log_snr()) for steps in (37, 111, 333)]
    for coarse, fine in pairwise(errors):
        assert 6 < coarse / fine < 13, "three times the steps: a ninth of the error"


def test_timesteps_fall_from_the_last_to_zero() -> None:
    for steps in range(1, 1000):
        times = solver_timesteps(steps)
        assert (times[0], times[-1], len(set(times))) == (999, 0, steps + 1)
        assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("steps", [1, 2, 14, 15, 999])
def test_any_number_of_steps_ends_near_the_data(steps: int) -> None:
    assert error(steps) < 1.0


@pytest.mark.parametrize("steps", [0, 1000])
def test_other_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps={steps}: choose 1 to 999"):
        error(steps)
