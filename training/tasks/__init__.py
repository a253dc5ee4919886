"""What is optimised: one file a task. A task turns micro-batches into updates of its engines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from data.batch import Batch
from training.engine import Engine


class Task(Protocol):
    """What the loop needs of a task."""

    engines: dict[str, Engine]

    def train_step(self, micro_batches: Iterator[Batch], step: int, learning_rate: float) -> dict[str, torch.Tensor]:
        """Consumes one step's micro-batches, updates the engines, returns this rank's metrics.

        A scalar is this rank's mean over its equal share of the step. [2] are sum and number of a group, and [K, 2] of
        K groups, which may lie unevenly on the ranks, and are empty on some.
        """
        ...

    def extra_state(self) -> dict[str, Any]:
        """Numbers that the checkpoint's manifest keeps beside the engines' tensors."""
        ...

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Takes back what `extra_state` gave."""
        ...


def named_sources(losses: torch.Tensor, sources: Sequence[str]) -> dict[str, torch.Tensor]:
    """Metrics of losses by source. losses: sums and numbers, [K, 2]."""
    return {f"loss_source_{name}": total for name, total in zip(sources, losses, strict=True)}
