"""DDIM against the published sampler and against closed forms."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from models.conditioners import Condition
from models.guidance import classifier_free
from models.samplers.ddim import ddim, ddim_timesteps
from tests.models.samplers.known import SCHEDULE, exact_end, gaussian_denoiser, toy


@pytest.mark.parametrize(("steps", "scale"), [(10, 1.0), (50, 1.0), (50, 5.0)])
def test_trajectories_end_where_the_published_ones_do(golden: Any, steps: int, scale: float) -> None:
    data = golden.tensors("samplers")
    ones = torch.ones(len(data["x_T"]), 1, 1, 1)
    condition, nothing = Condition(context=ones), Condition(context=-ones)
    denoiser = classifier_free(toy, condition, nothing, scale)
    z_0 = ddim(denoiser, data["x_T"], SCHEDULE, steps)
    golden.agree(z_0, data[f"ddim.S{steps}.scale{scale:.0f}"])


@pytest.mark.parametrize("steps", [10, 50, 250])
def test_timesteps_are_the_published_ones(golden: Any, steps: int) -> None:
    assert ddim_timesteps(steps) == golden.tensors("samplers")[f"ddim_timesteps.{steps}"].tolist()


def test_timesteps_follow_the_published_rule_wherever_it_takes_the_steps_asked_for() -> None:
    for steps in range(1, 1000):
        published = [t + 1 for t in range(0, 1000, 1000 // steps)]
        if len(published) == steps:
            assert ddim_timesteps(steps) == published


def test_every_number_of_steps_gives_that_many_within_the_schedule() -> None:
    for steps in range(1, 1001):
        times = ddim_timesteps(steps)
        assert len(set(times)) == steps
        assert times == sorted(times)
        assert times[0] >= 0 and times[-1] <= 999


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_other_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps={steps}.*1 to 1000"):
        ddim_timesteps(steps)


def test_the_error_on_gaussian_data_halves_when_steps_double() -> None:
    z_T = torch.ones(1, 1, dtype=torch.float64)
    errors = []
    for steps in (50, 100, 200):
        z = ddim(gaussian_denoiser(0.5), z_T, SCHEDULE, steps)
        errors.append((z - exact_end(z_T, ddim_timesteps(steps)[-1], 0, 0.5)).abs().item())
    assert 1.7 < errors[0] / errors[1] < 2.3
    assert 1.7 < errors[1] / errors[2] < 2.3


def test_ancestral_sampling_gives_the_deviation_of_the_data() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(_: int) -> Tensor:
        return torch.randn(20_000, 1, generator=generator, dtype=torch.float64)

    z_0 = ddim(gaussian_denoiser(0.5), draw(0), SCHEDULE, 500, eta=1.0, noise=draw)
    assert abs(z_0.std().item() - 0.5) < 0.01


def test_noise_is_asked_for_only_when_it_matters() -> None:
    asked: list[int] = []

    def draw(step: int) -> Tensor:
        asked.append(step)
        return torch.zeros(1, 1, dtype=torch.float64)

    z_T = torch.ones(1, 1, dtype=torch.float64)
    ddim(gaussian_denoiser(0.5), z_T, SCHEDULE, 5, eta=0.0, noise=draw)
    assert asked == []
    ddim(gaussian_denoiser(0.5), z_T, SCHEDULE, 5, eta=1.0, noise=draw)
    assert asked == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"eta=0\.5"):
        ddim(gaussian_denoiser(0.5), z_T, SCHEDULE, 5, eta=0.5)


def test_progress_wraps_every_step() -> None:
    seen: list[int] = []

    def progress(steps: Iterable[int]) -> Iterator[int]:
        for step in steps:
            seen.append(step)
            yield step

    ddim(gaussian_denoiser(0.5), torch.ones(1, 1), SCHEDULE, 7, progress=progress)
    assert seen == list(range(7))
