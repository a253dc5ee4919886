"""Denoising diffusion implicit models (Song et al. 2021, "DDIM")."""

import torch
from torch import Tensor

from models.guidance import Denoiser
from models.samplers import Noise, Progress, unchanged
from models.schedule import NoiseSchedule


def ddim_timesteps(steps: int, schedule_steps: int = 1000) -> list[int]:
    """Timesteps of a trajectory in rising order: exactly `steps` of them, evenly spaced.

    Equals the published rule, range(0, T, T // steps) + 1, wherever that takes as many steps as were asked
    for: where `steps` divides T, short of T itself. (Elsewhere the published rule takes more, and its last
    step can lie beyond the schedule.) Raises ValueError unless 1 <= steps <= schedule_steps.
    """
    if not 1 <= steps <= schedule_steps:
        raise ValueError(f"steps={steps}: choose 1 to {schedule_steps}, the schedule's length")
    # Shifted by one as published, which a full trajectory has no room for.
    shift = 1 if steps < schedule_steps else 0
    return [i * schedule_steps // steps + shift for i in range(steps)]


def alpha_bar_after(times: list[int], alpha_bar: list[float]) -> list[float]:
    """Where the step from each of the rising times leads: to the next lower one's alpha_bar.

    The published sampler stops at alpha_bar_0; a trajectory that visits step 0 itself ends at no noise.
    """
    return [alpha_bar[0] if times[0] > 0 else 1.0] + [alpha_bar[t] for t in times[:-1]]


def towards(z_t: Tensor, eps: Tensor, a_t: float, a_s: float, sigma: float = 0.0) -> Tensor:
    """z_t moved along eps from alpha_bar a_t to a_s, short of the noise of deviation sigma (DDIM, Eq. 12)."""
    z_0 = (z_t - (1 - a_t) ** 0.5 * eps) / a_t**0.5
    return a_s**0.5 * z_0 + max(1 - a_s - sigma**2, 0.0) ** 0.5 * eps


@torch.no_grad()
def ddim(
    denoiser: Denoiser,
    z_T: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    noise: Noise | None = None,
    progress: Progress = unchanged,
    eta: float = 0.0,
) -> Tensor:
    """z_0 [B, C, H, W] from z_T, standard normal [B, C, H, W] (DDIM, Eq. 12 and 16).

    denoiser: (z_t, t int64 [B]) -> eps. steps: evaluations of the denoiser, 1 to schedule.steps.
    eta: 0 is deterministic, 1 the ancestral sampler; above 0, noise(i) gives step i's standard normal
    noise of z_T's shape, i counting from 0 at z_T. progress: wraps the iterable of steps, e.g. tqdm.
    Raises ValueError for steps out of range, or eta > 0 without noise.
    """
    if eta > 0 and noise is None:
        raise ValueError(f"eta={eta} draws noise at every step: give noise, a function of the step's number")
    times = ddim_timesteps(steps, schedule.steps)
    alpha_bar = schedule.alpha_bar.tolist()
    targets = alpha_bar_after(times, alpha_bar)
    z_t = z_T
    for i in progress(range(steps)):
        t = times[-1 - i]
        a_t, a_prev = alpha_bar[t], targets[-1 - i]
        eps = denoiser(z_t, torch.full((len(z_t),), t, dtype=torch.int64, device=z_t.device))
        sigma = eta * ((1 - a_prev) / (1 - a_t) * (1 - a_t / a_prev)) ** 0.5
        z_t = towards(z_t, eps, a_t, a_prev, sigma)
        if noise is not None and sigma > 0:
            z_t = z_t + sigma * noise(i)
    return z_t
