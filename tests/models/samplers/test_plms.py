"""PLMS against the published sampler and a closed form."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from models.prediction import Estimate
from models.samplers.ddim import ddim_timesteps
from models.samplers.plms import plms
from tests.models.samplers.known import SCHEDULE, even_in_log_snr, exact_end, gaussian_denoiser, toy_denoiser


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_trajectories_end_where_the_published_ones_do(golden: Any, scale: float) -> None:
    data = golden.tensors("samplers")
    z_0 = plms(toy_denoiser(len(data["x_T"]), scale), data["x_T"], SCHEDULE, 50)
    golden.agree(z_0, data[f"plms.S50.scale{scale:.0f}"])


def test_it_is_of_second_order() -> None:
    z_T, schedule = torch.ones(1, 1, dtype=torch.float64), even_in_log_snr()
    errors = []
    for steps in (50, 100, 200):
        z = plms(gaussian_denoiser(0.5, schedule), z_T, schedule, steps)
        errors.append((z - exact_end(z_T, ddim_timesteps(steps)[-1], 0, 0.5, schedule)).abs().item())
    for coarse, fine in pairwise(errors):
        assert 3.8 < coarse / fine < 4.2, "twice the steps: a quarter of the error"


@pytest.mark.parametrize("steps", [1, 2, 3, 999, 1000])
def test_any_number_of_steps_takes_one_evaluation_more(steps: int) -> None:
    calls = 0

    def denoiser(z_t: Tensor, t: Tensor) -> Estimate:
        nonlocal calls
        calls += 1
        return gaussian_denoiser(0.5)(z_t, t)

    z_0 = plms(denoiser, torch.ones(1, 1, dtype=torch.float64), SCHEDULE, steps)
    assert z_0.isfinite().all()
    assert calls == steps + 1
