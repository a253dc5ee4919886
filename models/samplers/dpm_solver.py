"""DPM-Solver++(2M) (Lu et al. 2022, "Fast Solver for Guided Sampling of Diffusion Probabilistic Models")."""

from math import inf, log, sqrt

import torch
from torch import Tensor

from models.prediction import Denoiser
from models.samplers import Noise, Progress, Start, at, begin, unchanged
from models.schedule import NoiseSchedule


def solver_timesteps(steps: int, schedule_steps: int = 1000) -> list[int]:
    """Timesteps of a trajectory in falling order: steps + 1 of them, evenly spaced from the schedule's last to 0.

    Raises ValueError unless 1 <= steps < schedule_steps.
    """
    if not 1 <= steps < schedule_steps:
        raise ValueError(f"steps={steps}: choose 1 to {schedule_steps - 1}, fewer than the schedule's length")
    return [round((schedule_steps - 1) * (steps - i) / steps) for i in range(steps + 1)]


@torch.no_grad()
def dpm_solver(
    denoiser: Denoiser,
    z_T: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    noise: Noise | None = None,
    progress: Progress = unchanged,
    start: Start | None = None,
) -> Tensor:
    """z_0 [B, C, H, W] from z_T, standard normal [B, C, H, W], at second order (DPM-Solver++, Algorithm 2).

    It ends at timestep 0, where some 3 % of noise are left, as DDIM's published trajectories do. The first step, and
    below 15 steps the last one too, are of first order, as its authors advise. So is the one after zero SNR.

    denoiser: (z_t, t int64 [B]) -> Estimate. steps: evaluations of the denoiser, 1 to schedule.steps - 1. noise: never
    asked for. progress: wraps the iterable of steps. start: a picture to begin from. Raises ValueError for steps out of
    range or an unusable start.
    """
    times = solver_timesteps(steps, schedule.steps)
    alpha_bar = schedule.alpha_bar.tolist()
    alpha = [sqrt(alpha_bar[t]) for t in times]
    sigma = [sqrt(1 - alpha_bar[t]) for t in times]
    half_log_snr = [log(a / s) if a > 0 else -inf for a, s in zip(alpha, sigma, strict=True)]  # lambda
    z_t, numbers = begin(z_T, times[:-1], schedule, start)
    before: Tensor | None = None
    for i in progress(numbers):
        z_0, _ = denoiser(z_t, at(times[i], z_t))
        direction = z_0
        if before is not None and not (i == steps - 1 and steps < 15):
            r = (half_log_snr[i] - half_log_snr[i - 1]) / (half_log_snr[i + 1] - half_log_snr[i])
            direction = z_0 + (z_0 - before) / (2 * r)
        ratio = sigma[i + 1] / sigma[i]
        z_t = ratio * z_t + (alpha[i + 1] - alpha[i] * ratio) * direction
        before = z_0
    return z_t
