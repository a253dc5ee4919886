"""From noise to latents: one sampler a file."""

from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor

from models.guidance import Denoiser
from models.schedule import NoiseSchedule

Noise = Callable[[int], Tensor]
"""Number of a step, counting from 0 at z_T -> standard normal of z_T's shape."""

Progress = Callable[[Iterable[int]], Iterable[int]]
"""Wraps the iterable of a sampler's steps, e.g. tqdm."""


def unchanged(steps: Iterable[int]) -> Iterable[int]:
    """No progress is shown."""
    return steps


class Sampler(Protocol):
    """z_0 [B, C, H, W] from z_T, standard normal [B, C, H, W], in `steps` steps of a denoiser that predicts eps.

    noise: asked at most once a step, in the steps' order, and only by samplers that draw.
    Raises ValueError for steps out of the sampler's range.
    """

    def __call__(
        self,
        denoiser: Denoiser,
        z_T: Tensor,
        schedule: NoiseSchedule,
        steps: int,
        noise: Noise,
        progress: Progress = unchanged,
    ) -> Tensor: ...
