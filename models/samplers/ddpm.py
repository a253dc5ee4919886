"""Ancestral sampling (Ho et al. 2020, "Denoising Diffusion Probabilistic Models")."""

from math import sqrt

import torch
from torch import Tensor

from models.guidance import Denoiser
from models.samplers import Noise, Progress, unchanged
from models.schedule import NoiseSchedule


@torch.no_grad()
def ddpm(
    denoiser: Denoiser,
    z_T: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    noise: Noise,
    progress: Progress = unchanged,
) -> Tensor:
    """z_0 [B, C, H, W] from z_T, standard normal [B, C, H, W] (Ho et al. 2020, Algorithm 2).

    Each step draws from q(z_s | z_t, z_0) of Eq. 6 and 7 with the denoiser's z_0, so with the smaller of the paper's
    two variances; s is the next of `steps` evenly spaced timesteps, up to all of the schedule's.

    denoiser: (z_t, t int64 [B]) -> eps. steps: evaluations of the denoiser, 1 to schedule.steps. noise(i): step i's
    standard normal noise of z_T's shape, i counting from 0 at z_T. progress: wraps the iterable of steps.
    Raises ValueError for steps out of range.
    """
    if not 1 <= steps <= schedule.steps:
        raise ValueError(f"steps={steps}: choose 1 to {schedule.steps}, the schedule's length")
    times = [(i + 1) * schedule.steps // steps - 1 for i in range(steps)]
    alpha_bar = schedule.alpha_bar.tolist()
    targets = [1.0] + [alpha_bar[t] for t in times[:-1]]
    z_t = z_T
    for i in progress(range(steps)):
        t = times[-1 - i]
        a_t, a_s = alpha_bar[t], targets[-1 - i]
        eps = denoiser(z_t, torch.full((len(z_t),), t, dtype=torch.int64, device=z_t.device))
        z_0 = (z_t - sqrt(1 - a_t) * eps) / sqrt(a_t)
        beta = 1 - a_t / a_s  # of the whole way from s to t
        z_t = sqrt(a_s) * beta / (1 - a_t) * z_0 + sqrt(a_t / a_s) * (1 - a_s) / (1 - a_t) * z_t
        if i < steps - 1:
            z_t = z_t + sqrt(beta * (1 - a_s) / (1 - a_t)) * noise(i)
    return z_t
