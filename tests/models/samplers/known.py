"""Denoisers whose trajectories are known: the golden files' toy, and data that is Gaussian."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.conditioners import Condition
from models.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule(0.00085, 0.012)


def toy(z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """The denoiser that the golden trajectories were made with."""
    alpha_bar = SCHEDULE.alpha_bar[t].to(z_t)[:, None, None, None]
    cosine = (t / 1000).cos()[:, None, None, None]
    return z_t * (1 - alpha_bar).sqrt() * cosine + 0.1 * condition.context


def even_in_log_snr() -> NoiseSchedule:
    """A schedule whose timesteps are evenly spaced in the logarithm of the signal-to-noise ratio."""
    schedule = NoiseSchedule(0.00085, 0.012)
    schedule.alpha_bar = torch.linspace(6.0, -5.0, schedule.steps, dtype=torch.float64).sigmoid()
    return schedule


def gaussian_denoiser(deviation: float, schedule: NoiseSchedule = SCHEDULE) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact eps for data N(0, deviation^2): the best linear predictor of the noise."""

    def denoiser(z_t: Tensor, t: Tensor) -> Tensor:
        alpha_bar = schedule.alpha_bar[t][:, None]
        return z_t * (1 - alpha_bar).sqrt() / (alpha_bar * deviation**2 + 1 - alpha_bar)

    return denoiser


def exact_end(z_T: Tensor, start: int, end: int, deviation: float, schedule: NoiseSchedule = SCHEDULE) -> Tensor:
    """Along the deterministic flow of Gaussian data, z_t keeps its place in units of its deviation."""

    def spread(t: int) -> float:
        alpha_bar = schedule.alpha_bar[t].item()
        return math.sqrt(alpha_bar * deviation**2 + 1 - alpha_bar)

    return z_T * spread(end) / spread(start)
