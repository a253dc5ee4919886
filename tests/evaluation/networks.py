"""Small networks to measure with, and ranks that are threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from evaluation.features import FeatureNetwork, MeasureNames
from evaluation.metrics.metric import Pictures, Ranks
from evaluation.weights import WeightsFile
from training.distributed import Distributed

Result = TypeVar("Result")


class Projection(FeatureNetwork):
    """A cheap feature network for pictures of 4 x 4: fixed random projections of the pixels."""

    name = "projection"
    title = "random projection"
    names = MeasureNames("distance", "score")
    width, classes = 8, 5

    def __init__(self) -> None:
        super().__init__(WeightsFile({}, "none"), "cpu")
        generator = torch.Generator().manual_seed(0)
        self.features = torch.randn(3 * 4 * 4, self.width, generator=generator)
        self.logits = torch.randn(3 * 4 * 4, self.classes, generator=generator)

    def see(self, images: Tensor) -> Mapping[str, Tensor]:
        x = images.flatten(1).float() / 255
        return {"features": x @ self.features, "logits": x @ self.logits}


def pictures(count: int, seed: int, size: int = 4) -> Tensor:
    """Noise, uint8 [count, 3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def batches(
    images: Tensor, size: int, rank: int = 0, world: int = 1, originals: Tensor | None = None
) -> list[Pictures]:
    """A rank's share of images in batches."""
    parts = Distributed(rank, world, rank, images.device).share(len(images), size)
    return [Pictures(n, images[n], (), None if originals is None else originals[n]) for n in parts]


@dataclass(frozen=True)
class Thread:
    """A rank that is a thread."""

    rank: int
    world: int
    shares: list[Tensor]
    barrier: threading.Barrier

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        self.shares[self.rank] = tensor.clone()
        self.barrier.wait()
        total = torch.stack(self.shares).sum(0)
        self.barrier.wait()
        return total


def on_ranks(world: int, work: Callable[[Ranks], Result]) -> list[Result]:
    """What `work` returns on each of so many ranks."""
    shares: list[Tensor] = [torch.empty(0)] * world
    barrier = threading.Barrier(world, timeout=60)
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(work, [Thread(rank, world, shares, barrier) for rank in range(world)]))
