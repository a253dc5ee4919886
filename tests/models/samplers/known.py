"""Denoisers whose trajectories are known: the golden files' toy, and data that is Gaussian."""

import math

import torch
from torch import Tensor

from models.conditioners import Condition
from models.guidance import classifier_free
from models.prediction import PREDICTIONS, Denoiser, as_denoiser
from models.samplers import Sampler
from models.schedule import NoiseSchedule, linear

SCHEDULE = linear(0.00085, 0.012)


def toy(z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """The eps that the golden trajectories were made with."""
    alpha_bar = SCHEDULE.alpha_bar[t].to(z_t)[:, None, None, None]
    cosine = (t / 1000).cos()[:, None, None, None]
    return z_t * (1 - alpha_bar).sqrt() * cosine + 0.1 * condition.context


def toy_denoiser(count: int, scale: float) -> Denoiser:
    """The denoiser of the golden trajectories for that many samples, with their two conditions at a guidance scale."""
    ones = torch.ones(count, 1, 1, 1)
    guided = classifier_free(toy, Condition(context=ones), Condition(context=-ones), scale)
    return as_denoiser(guided, PREDICTIONS["epsilon"], SCHEDULE)


def even_in_log_snr() -> NoiseSchedule:
    """A schedule whose timesteps are evenly spaced in the logarithm of the signal-to-noise ratio."""
    alpha_bar = torch.linspace(6.0, -5.0, 1000, dtype=torch.float64).sigmoid()
    return NoiseSchedule(torch.cat([1 - alpha_bar[:1], 1 - alpha_bar[1:] / alpha_bar[:-1]]))


def gaussian_denoiser(
    deviation: float, schedule: NoiseSchedule = SCHEDULE, mean: float = 0.0, prediction: str = "v"
) -> Denoiser:
    """Exact for data N(mean, deviation^2): what the best network would predict."""
    meaning = PREDICTIONS[prediction]

    def network(z_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.roots(t, z_t)
        innovation = (z_t - alpha * mean) / (alpha**2 * deviation**2 + sigma**2)
        return meaning.target(mean + alpha * deviation**2 * innovation, sigma * innovation, alpha, sigma)

    return as_denoiser(network, meaning, schedule)


def exact_end(z_T: Tensor, start: int, end: int, deviation: float, schedule: NoiseSchedule = SCHEDULE) -> Tensor:
    """Along the deterministic flow of Gaussian data, z_t keeps its place in units of its deviation."""

    def spread(t: int) -> float:
        alpha_bar = schedule.alpha_bar[t].item()
        return math.sqrt(alpha_bar * deviation**2 + 1 - alpha_bar)

    return z_T * spread(end) / spread(start)


def drawn_distribution(sampler: Sampler, schedule: NoiseSchedule, steps: int, mean: float = 0.0) -> tuple[float, float]:
    """Mean and deviation of what a sampler draws with the denoiser of N(mean, 0.5^2), without drawing.

    Such a sampler is affine in its random numbers, so its variance is the sum of the squared answers to each alone.
    """
    # Column 0 gets no noise at all, column 1 a unit z_T, and column 2 + i a unit noise in step i.
    z_T = torch.zeros(steps + 2, 1, dtype=torch.float64)
    z_T[1] = 1.0

    def noise(step: int) -> Tensor:
        impulse = torch.zeros_like(z_T)
        impulse[2 + step] = 1.0
        return impulse

    z_0 = sampler(gaussian_denoiser(0.5, schedule, mean), z_T, schedule, steps, noise)
    return z_0[0].item(), (z_0[1:] - z_0[0]).square().sum().sqrt().item()
