"""From noise to latents: one sampler a file."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from models.prediction import Denoiser
from models.schedule import NoiseSchedule

Noise = Callable[[int], Tensor]
"""Number of a step, counting from 0 at z_T -> standard normal of z_T's shape."""

Progress = Callable[[Iterable[int]], Iterable[int]]
"""Wraps the iterable of a sampler's steps, e.g. tqdm."""


def unchanged(steps: Iterable[int]) -> Iterable[int]:
    """No progress is shown."""
    return steps


class Start(NamedTuple):
    """A picture to begin from, part-way down the trajectory (SDEdit; Meng et al. 2022)."""

    z_0: Tensor
    """Its latent, [B, C, H, W]."""
    skip: int
    """Steps left out at the noisy end, 0 to steps - 1; z_0 is noised by z_T to where the remaining ones begin."""


class Sampler(Protocol):
    """z_0 [B, C, H, W] from z_T, standard normal [B, C, H, W], in `steps` steps of a denoiser.

    noise: asked at most once a step, in order, and only by samplers that draw. start: None is from noise alone.
    Raises ValueError for steps out of the sampler's range, and for what `begin` refuses.
    """

    def __call__(
        self,
        denoiser: Denoiser,
        z_T: Tensor,
        schedule: NoiseSchedule,
        steps: int,
        noise: Noise,
        progress: Progress = unchanged,
        start: Start | None = None,
    ) -> Tensor: ...


def begin(z_T: Tensor, times: list[int], schedule: NoiseSchedule, start: Start | None) -> tuple[Tensor, range]:
    """The first z_t, and the numbers of the steps to take from it.

    times: timestep at which each step begins, falling. Raises ValueError when z_T isn't finite, or `start` has another
    shape than z_T or leaves out too many steps.
    """
    if not z_T.isfinite().all():
        raise ValueError("z_T holds infinite numbers, or none at all (NaN): give standard normal noise")
    if start is None:
        return z_T, range(len(times))
    if start.z_0.shape != z_T.shape:
        raise ValueError(f"start.z_0 has shape {list(start.z_0.shape)} and z_T {list(z_T.shape)}: they must be equal")
    if not 0 <= start.skip < len(times):
        raise ValueError(f"skip={start.skip}: choose 0 to {len(times) - 1}, fewer than the {len(times)} steps")
    return schedule.add_noise(start.z_0, z_T, at(times[start.skip], z_T)), range(start.skip, len(times))


def at(timestep: int, z_t: Tensor) -> Tensor:
    """The timestep for each sample of z_t, int64 [B] on its device."""
    return torch.full((len(z_t),), timestep, dtype=torch.int64, device=z_t.device)
