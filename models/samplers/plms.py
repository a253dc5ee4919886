"""Pseudo linear multistep sampling (Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds")."""

import torch
from torch import Tensor

from models.prediction import Denoiser
from models.samplers import Noise, Progress, Start, at, begin, unchanged
from models.samplers.ddim import towards, trajectory
from models.schedule import NoiseSchedule

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Weights of the newest, the second newest, ... estimate of the noise, by how many there are."""


@torch.no_grad()
def plms(
    denoiser: Denoiser,
    z_T: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    noise: Noise | None = None,
    progress: Progress = unchanged,
    start: Start | None = None,
) -> Tensor:
    """z_0 [B, C, H, W] from z_T, standard normal [B, C, H, W] (PNDM, Eq. 12 and 13), with DDIM's timesteps and step.

    denoiser: (z_t, t int64 [B]) -> Estimate. steps: 1 to schedule.steps; evaluations of the denoiser are one more, for
    the first step is taken with the mean of the estimates at its two ends (but from zero SNR, where the noise says
    nothing of z_0, it is DDIM's). noise: never asked for. progress: wraps the iterable of steps. start: a picture to
    begin from. Raises ValueError for steps out of range or an unusable start.
    """
    way = trajectory(steps, schedule, None)
    z_t, numbers = begin(z_T, [step.t for step in way], schedule, start)
    newest_first: list[Tensor] = []
    for i in progress(numbers):
        t, a_t, a_s = way[i]
        z_0, eps = denoiser(z_t, at(t, z_t))
        newest_first = [eps, *newest_first[:3]]
        if a_t > 0:
            if len(newest_first) > 1:
                weights = ADAMS_BASHFORTH[len(newest_first) - 1]
                eps = torch.stack([w * e for w, e in zip(weights, newest_first, strict=True)]).sum(0)
            else:
                after = way[min(i + 1, steps - 1)].t
                eps = (eps + denoiser(towards(z_0, eps, a_s), at(after, z_t)).eps) / 2
            z_0 = (z_t - (1 - a_t) ** 0.5 * eps) / a_t**0.5
        z_t = towards(z_0, eps, a_s)
    return z_t
