"""Pseudo linear multistep sampling (Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds")."""

import torch
from torch import Tensor

from models.guidance import Denoiser
from models.samplers import Noise, Progress, unchanged
from models.samplers.ddim import alpha_bar_after, ddim_timesteps, towards
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
) -> Tensor:
    """z_0 [B, C, H, W] from z_T, standard normal [B, C, H, W] (PNDM, Eq. 12 and 13), with DDIM's timesteps and step.

    denoiser: (z_t, t int64 [B]) -> eps. steps: 1 to schedule.steps; evaluations of the denoiser are one more, for the
    first step is taken with the mean of the estimates at its two ends. noise: never asked for. progress: wraps the
    iterable of steps. Raises ValueError for steps out of range.
    """
    times = ddim_timesteps(steps, schedule.steps)
    alpha_bar = schedule.alpha_bar.tolist()
    targets = alpha_bar_after(times, alpha_bar)

    def estimate(z_t: Tensor, t: int) -> Tensor:
        return denoiser(z_t, torch.full((len(z_t),), t, dtype=torch.int64, device=z_t.device))

    z_t = z_T
    newest_first: list[Tensor] = []
    for i in progress(range(steps)):
        t = times[-1 - i]
        a_t, a_prev = alpha_bar[t], targets[-1 - i]
        eps = estimate(z_t, t)
        if i == 0:
            after = times[max(steps - 2, 0)]
            combined = (eps + estimate(towards(z_t, eps, a_t, a_prev), after)) / 2
        newest_first = [eps, *newest_first[:3]]
        if i > 0:
            weights = ADAMS_BASHFORTH[len(newest_first) - 1]
            combined = sum(w * e for w, e in zip(weights, newest_first, strict=True))  # type: ignore[assignment]
        z_t = towards(z_t, combined, a_t, a_prev)
    return z_t
