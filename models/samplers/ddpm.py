"""Ancestral sampling (Ho et al. 2020, "Denoising Diffusion Probabilistic Models")."""

from math import sqrt

import torch
from torch import Tensor

from models.prediction import Denoiser
from models.samplers import Noise, Progress, Start, at, begin, unchanged
from models.samplers.ddim import trajectory
from models.schedule import NoiseSchedule


@torch.no_grad()
def ddpm(
    denoiser: Denoiser,
    z_T: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    noise: Noise,
    progress: Progress = unchanged,
    start: Start | None = None,
) -> Tensor:
    """z_0 [B, C, H, W] from z_T, standard normal [B, C, H, W] (Ho et al. 2020, Algorithm 2).

    Each step draws from q(z_s | z_t, z_0) of Eq. 6 and 7 with the denoiser's z_0, so with the smaller of the paper's
    two variances; s is the next of `steps` evenly spaced timesteps, up to all of the schedule's.

    denoiser: (z_t, t int64 [B]) -> Estimate. steps: evaluations of the denoiser, 1 to schedule.steps. noise(i): step
    i's standard normal noise of z_T's shape, i counting from 0 at z_T. progress: wraps the iterable of steps. start: a
    picture to begin from. Raises ValueError for steps out of range or an unusable start.
    """
    way = trajectory(steps, schedule, "trailing")
    z_t, numbers = begin(z_T, [step.t for step in way], schedule, start)
    for i in progress(numbers):
        t, a_t, a_s = way[i]
        z_0, _ = denoiser(z_t, at(t, z_t))
        beta = 1 - a_t / a_s  # of the whole way from s to t
        z_t = sqrt(a_s) * beta / (1 - a_t) * z_0 + sqrt(a_t / a_s) * (1 - a_s) / (1 - a_t) * z_t
        if a_s < 1:
            z_t = z_t + sqrt(beta * (1 - a_s) / (1 - a_t)) * noise(i)
    return z_t
