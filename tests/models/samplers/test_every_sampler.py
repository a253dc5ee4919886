"""What holds for every sampler: where it begins, how it goes on, and schedules that end in pure noise."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from models.prediction import Denoiser, Estimate
from models.samplers import Sampler, Start
from models.samplers.ddim import ddim
from models.samplers.ddpm import ddpm
from models.samplers.dpm_solver import dpm_solver
from models.samplers.plms import plms
from models.schedule import cosine, linear
from tests.models.samplers.known import SCHEDULE, drawn_distribution, gaussian_denoiser

SAMPLERS = {
    "ddim": ddim,
    "ddim, trailing": partial(ddim, spacing="trailing"),
    "ddim, published": partial(ddim, spacing="published"),
    "ddim, eta 1": partial(ddim, eta=1.0),
    "ddpm": ddpm,
    "plms": plms,
    "dpm_solver": dpm_solver,
}
ENDING_IN_NOISE = {
    "linear": linear(0.00085, 0.012, zero_terminal_snr=True),
    "cosine": cosine(zero_terminal_snr=True),
}
Z_T, PICTURE = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())


def draw(step: int) -> Tensor:
    """Step's noise, the same whenever it is asked for."""
    return torch.randn(3, 2, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


class Watched:
    """A denoiser that remembers what it was asked."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.asked: list[tuple[int, Tensor]] = []
        self.answers: list[Estimate] = []

    def __call__(self, z_t: Tensor, t: Tensor) -> Estimate:
        self.asked.append((int(t[0]), z_t))
        self.answers.append(self.denoiser(z_t, t))
        return self.answers[-1]


@every_sampler
@pytest.mark.parametrize("skip", [0, 3, 9])
def test_a_picture_is_noised_to_exactly_where_the_remaining_steps_begin(sampler: Sampler, skip: int) -> None:
    whole, rest = Watched(gaussian_denoiser(0.5)), Watched(gaussian_denoiser(0.5))
    sampler(whole, Z_T, SCHEDULE, 10, draw)
    sampler(rest, Z_T, SCHEDULE, 10, draw, start=Start(PICTURE, skip))
    t, z_t = rest.asked[0]
    torch.testing.assert_close(z_t, SCHEDULE.add_noise(PICTURE, Z_T, torch.full((3,), t)))
    second = 1 if sampler is plms else 0  # its first step takes two evaluations
    assert len(rest.asked) == 10 - skip + second
    assert [t for t, _ in rest.asked][1 + second :] == [t for t, _ in whole.asked][1 + second + skip :]


@pytest.mark.parametrize("name", ["ddim", "ddim, trailing", "ddim, eta 1", "ddpm"])
def test_the_remaining_steps_are_those_of_the_whole_trajectory(name: str) -> None:
    sampler, watched = SAMPLERS[name], Watched(gaussian_denoiser(0.5))
    z_0 = sampler(watched, Z_T, SCHEDULE, 10, draw)
    half_way = watched.answers[4]  # its z_0 and eps together are z_t there
    rest = sampler(gaussian_denoiser(0.5), half_way.eps, SCHEDULE, 10, draw, start=Start(half_way.z_0, 4))
    torch.testing.assert_close(rest, z_0)


@every_sampler
def test_nothing_of_the_picture_is_left_where_the_schedule_ends_in_noise(sampler: Sampler) -> None:
    schedule = ENDING_IN_NOISE["linear"]
    if isinstance(sampler, partial) and sampler.keywords.get("spacing") == "published":
        pytest.skip("the published timesteps stop short of the end")
    denoiser = gaussian_denoiser(0.5, schedule)
    begun = sampler(denoiser, Z_T, schedule, 10, draw, start=Start(PICTURE, 0))
    assert torch.equal(begun, sampler(denoiser, Z_T, schedule, 10, draw))


@pytest.mark.parametrize("sampler", [ddim, plms, dpm_solver])
@pytest.mark.parametrize("schedule", ENDING_IN_NOISE)
def test_from_pure_noise_the_flow_ends_at_its_place_in_the_data(sampler: Sampler, schedule: str) -> None:
    known = ENDING_IN_NOISE[schedule]
    z_0 = sampler(gaussian_denoiser(0.5, known, mean=2.0), Z_T, known, 200, draw)
    torch.testing.assert_close(z_0, 2.0 + 0.5 * Z_T, rtol=0.0, atol=0.06)


@pytest.mark.parametrize("schedule", ENDING_IN_NOISE)
def test_from_pure_noise_ancestral_sampling_nears_the_distribution_of_the_data(schedule: str) -> None:
    errors = []
    for steps in (250, 500, 1000):
        mean, deviation = drawn_distribution(ddpm, ENDING_IN_NOISE[schedule], steps, mean=2.0)
        assert abs(mean - 2.0) < 1e-9
        errors.append(abs(deviation - 0.5))
    assert errors[-1] < 0.01
    for coarse, fine in pairwise(errors):
        assert 1.6 < coarse / fine < 2.1, "twice the steps: half the error"


def test_ddim_with_all_its_noise_is_ancestral_sampling() -> None:
    denoiser = gaussian_denoiser(0.5)
    noisy = ddim(denoiser, Z_T, SCHEDULE, 30, draw, eta=1.0, spacing="trailing")
    torch.testing.assert_close(noisy, ddpm(denoiser, Z_T, SCHEDULE, 30, draw))


@every_sampler
def test_what_the_network_predicts_is_the_same_to_a_sampler(sampler: Sampler) -> None:
    found = [sampler(gaussian_denoiser(0.5, prediction=p), Z_T, SCHEDULE, 10, draw) for p in ("epsilon", "v", "z_0")]
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


@every_sampler
@pytest.mark.parametrize(
    ("z_T", "start", "message"),
    [
        (Z_T * float("nan"), None, "z_T holds infinite numbers, or none"),
        (Z_T, Start(PICTURE[:2], 1), r"start.z_0 has shape \[2, 2\] and z_T \[3, 2\]"),
        (Z_T, Start(PICTURE, 10), "skip=10: choose 0 to 9"),
        (Z_T, Start(PICTURE, -1), "skip=-1: choose 0 to 9"),
    ],
)
def test_unusable_beginnings_are_named(sampler: Sampler, z_T: Tensor, start: Start | None, message: str) -> None:
    def never(z_t: Tensor, t: Tensor) -> Estimate:
        raise AssertionError("the denoiser was asked")

    with pytest.raises(ValueError, match=message):
        sampler(never, z_T, SCHEDULE, 10, draw, start=start)
