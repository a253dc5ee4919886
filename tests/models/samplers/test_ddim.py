"""DDIM against the published sampler and against closed forms."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from models.prediction import Estimate
from models.samplers.ddim import Spacing, ddim, ddim_timesteps, trajectory
from models.schedule import linear
from tests.models.samplers.known import SCHEDULE, drawn_distribution, exact_end, gaussian_denoiser, toy_denoiser


@pytest.mark.parametrize(("steps", "scale"), [(10, 1.0), (50, 1.0), (50, 5.0)])
def test_trajectories_end_where_the_published_ones_do(golden: Any, steps: int, scale: float) -> None:
    data = golden.tensors("samplers")
    z_0 = ddim(toy_denoiser(len(data["x_T"]), scale), data["x_T"], SCHEDULE, steps)
    golden.agree(z_0, data[f"ddim.S{steps}.scale{scale:.0f}"])


@pytest.mark.parametrize("steps", [10, 50, 250])
def test_timesteps_are_the_published_ones(golden: Any, steps: int) -> None:
    assert ddim_timesteps(steps) == golden.tensors("samplers")[f"ddim_timesteps.{steps}"].tolist()


def test_timesteps_follow_the_published_rule_wherever_it_takes_the_steps_asked_for() -> None:
    for steps in range(1, 1000):
        published = [t + 1 for t in range(0, 1000, 1000 // steps)]
        if len(published) == steps:
            assert ddim_timesteps(steps) == published


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_every_number_of_steps_gives_that_many_within_the_schedule(spacing: Spacing) -> None:
    for steps in range(1, 1001):
        times = ddim_timesteps(steps, 1000, spacing)
        assert len(set(times)) == steps
        assert times == sorted(times)
        assert times[0] >= 0 and times[-1] <= 999
        assert times[-1] == 999 or spacing == "leading"


PICTURE = torch.tensor([-1.0, 2.0], dtype=torch.float64)
ROOTS = [(a**0.5, (1 - a) ** 0.5) for a in SCHEDULE.alpha_bar.tolist()]


def draw_one_picture(steps: int, eta: float) -> None:
    """With the denoiser of data that is one picture: all steps are taken, and what is left beside it is noise.

    Without new noise that is the first z_t's own, to the last digit.
    """
    asked: list[int] = []

    def denoiser(z_t: Tensor, t: Tensor) -> Estimate:
        asked.append(t.tolist()[0])
        alpha, sigma = ROOTS[asked[-1]]
        return Estimate(PICTURE, (z_t - alpha * PICTURE) / sigma)

    times, eps = ddim_timesteps(steps)[::-1], torch.tensor([0.5, -0.7], dtype=torch.float64)
    alpha, sigma = ROOTS[times[0]]
    z_0 = ddim(denoiser, alpha * PICTURE + sigma * eps, SCHEDULE, steps, lambda step: (-1) ** step * eps, eta=eta)
    assert asked == times
    a_s = trajectory(steps, SCHEDULE, None)[-1].a_s
    left = (z_0 - a_s**0.5 * PICTURE).tolist()
    if eta == 0:
        assert left == pytest.approx(((1 - a_s) ** 0.5 * eps).tolist(), abs=1e-9)
    assert max(map(abs, left)) < max(1.0, 2 * eta) * (1 - a_s) ** 0.5 + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_every_number_of_steps_runs(eta: float) -> None:
    """Half a million steps."""
    for steps in range(1, 1001):
        draw_one_picture(steps, eta)


@pytest.mark.parametrize("eta", [0.0, 0.1, 0.5, 1.0, 1.5])
def test_any_eta_runs(eta: float) -> None:
    for steps in (*range(1, 38), *range(101, 112, 5), 1000):  # with those that the published rule can't
        draw_one_picture(steps, eta)


def test_trailing_timesteps_are_those_of_lin_et_al() -> None:
    assert ddim_timesteps(10, 1000, "trailing") == [99, 199, 299, 399, 499, 599, 699, 799, 899, 999]
    assert ddim_timesteps(3, 1000, "trailing") == [332, 666, 999]


def test_the_published_rule_takes_more_steps_or_leaves_the_schedule() -> None:
    assert ddim_timesteps(30, 1000, "published") == list(range(1, 1000, 33))
    assert len(ddim_timesteps(30, 1000, "published")) == 31
    for steps in (3, 9, 27, 36, 37, *range(101, 112), 1000):
        with pytest.raises(ValueError, match=f"steps={steps}: spacing=published.*choose spacing=leading"):
            ddim_timesteps(steps, 1000, "published")
    with pytest.raises(ValueError, match="spacing=even: choose leading, trailing or published"):
        ddim_timesteps(5, 1000, "even")  # type: ignore[arg-type]


def test_the_spacing_follows_from_where_the_schedule_ends() -> None:
    ending_in_noise = linear(0.00085, 0.012, zero_terminal_snr=True)
    for schedule, spacing in ((SCHEDULE, "leading"), (ending_in_noise, "trailing")):
        assert trajectory(7, schedule, None) == trajectory(7, schedule, spacing)  # type: ignore[arg-type]


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
    _, deviation = drawn_distribution(partial(ddim, eta=1.0), SCHEDULE, 500)
    assert abs(deviation - 0.5) < 0.01


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
    for eta in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"eta={eta}: choose 0"):
            ddim(gaussian_denoiser(0.5), z_T, SCHEDULE, 5, eta=eta, noise=draw)


def test_progress_wraps_every_step() -> None:
    seen: list[int] = []

    def progress(steps: Iterable[int]) -> Iterator[int]:
        for step in steps:
            seen.append(step)
            yield step

    ddim(gaussian_denoiser(0.5), torch.ones(1, 1), SCHEDULE, 7, progress=progress)
    assert seen == list(range(7))
