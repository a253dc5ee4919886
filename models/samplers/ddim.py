"""Denoising diffusion implicit models (Song et al. 2021, "DDIM")."""

from math import inf
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from models.prediction import Denoiser
from models.samplers import Noise, Progress, Start, at, begin, unchanged
from models.schedule import NoiseSchedule

Spacing = Literal["leading", "trailing", "published"]


def ddim_timesteps(steps: int, schedule_steps: int = 1000, spacing: Spacing = "leading") -> list[int]:
    """Timesteps of a trajectory in rising order, evenly spaced: exactly `steps` of them, unless "published".

    spacing: "leading" equals the published rule, range(0, T, T // steps) + 1, wherever that takes as many steps as were
    asked for: where `steps` divides T, short of T itself. "published" is that rule as it stands, which elsewhere takes
    more steps, and whose last can lie beyond the schedule. "trailing" ends at the schedule's last timestep, as
    zero-terminal SNR needs (Lin et al. 2024, Sec. 3.3).

    Raises ValueError unless 1 <= steps <= schedule_steps, for an unknown spacing, and for "published" where it leaves
    the schedule.
    """
    if not 1 <= steps <= schedule_steps:
        raise ValueError(f"steps={steps}: choose 1 to {schedule_steps}, the schedule's length")
    if spacing == "trailing":
        return [round(i * schedule_steps / steps) - 1 for i in range(1, steps + 1)]
    if spacing == "leading":
        # Shifted by one as published, which a full trajectory has no room for.
        shift = 1 if steps < schedule_steps else 0
        return [i * schedule_steps // steps + shift for i in range(steps)]
    if spacing != "published":
        raise ValueError(f"spacing={spacing}: choose leading, trailing or published")
    times = [t + 1 for t in range(0, schedule_steps, schedule_steps // steps)]
    if times[-1] >= schedule_steps:
        raise ValueError(f"steps={steps}: spacing=published leaves the schedule at {times[-1]}; choose spacing=leading")
    return times


class Step(NamedTuple):
    """One step of a trajectory: from timestep t, of alpha_bar a_t, to alpha_bar a_s."""

    t: int
    a_t: float
    a_s: float


def trajectory(steps: int, schedule: NoiseSchedule, spacing: Spacing | None) -> list[Step]:
    """The steps from the noisy end, each leading to the next timestep's alpha_bar.

    spacing: None is "trailing" where the schedule ends at zero SNR, and else "leading". The published sampler, which is
    "leading", stops at alpha_bar_0; the last step goes to no noise where it begins at timestep 0 itself, and for
    "trailing" always.
    """
    if spacing is None:
        spacing = "trailing" if schedule.zero_terminal_snr else "leading"
    times = ddim_timesteps(steps, schedule.steps, spacing)
    alpha_bar = schedule.alpha_bar.tolist()
    end = 1.0 if spacing == "trailing" or times[0] == 0 else alpha_bar[0]
    targets = [end, *(alpha_bar[t] for t in times[:-1])]
    return [Step(t, alpha_bar[t], a_s) for t, a_s in zip(times, targets, strict=True)][::-1]


def towards(z_0: Tensor, eps: Tensor, a_s: float, sigma: float = 0.0) -> Tensor:
    """z_s at alpha_bar a_s, short of the noise of deviation sigma (DDIM, Eq. 12)."""
    return a_s**0.5 * z_0 + max(1 - a_s - sigma**2, 0.0) ** 0.5 * eps


@torch.no_grad()
def ddim(
    denoiser: Denoiser,
    z_T: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    noise: Noise | None = None,
    progress: Progress = unchanged,
    start: Start | None = None,
    eta: float = 0.0,
    spacing: Spacing | None = None,
) -> Tensor:
    """z_0 [B, C, H, W] from z_T, standard normal [B, C, H, W] (DDIM, Eq. 12 and 16).

    denoiser: (z_t, t int64 [B]) -> Estimate. steps: evaluations of the denoiser, 1 to schedule.steps.
    noise(i): for eta > 0, step i's standard normal noise of z_T's shape, i counting from 0 at z_T. progress: wraps the
    iterable of steps, e.g. tqdm. start: a picture to begin from. eta: 0 is deterministic, 1 the ancestral sampler.
    spacing: of `ddim_timesteps`; None: "trailing" where the schedule ends at zero SNR, else "leading".
    Raises ValueError for steps out of range, an unusable spacing or start, eta < 0, or eta > 0 without noise.
    """
    if not 0 <= eta < inf:
        raise ValueError(f"eta={eta}: choose 0 (deterministic) or above; 1 is the ancestral sampler")
    if eta > 0 and noise is None:
        raise ValueError(f"eta={eta} draws noise at every step: give noise, a function of the step's number")
    way = trajectory(steps, schedule, spacing)
    z_t, numbers = begin(z_T, [step.t for step in way], schedule, start)
    for i in progress(numbers):
        t, a_t, a_s = way[i]
        z_0, eps = denoiser(z_t, at(t, z_t))
        sigma = eta * ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)) ** 0.5
        z_t = towards(z_0, eps, a_s, sigma)
        if noise is not None and sigma > 0:
            z_t = z_t + sigma * noise(i)
    return z_t
