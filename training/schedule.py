"""Learning rate as a function of the step alone, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from dataclasses import dataclass

DECAYS = ("constant", "cosine")


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up over `warmup_steps`, or over `warmup_images` where that is given, then constant, or a half cosine
    to `floor` × base at the last step.

    base: absolute learning rate; floor: in [0, 1].
    """

    base: float
    warmup_steps: int = 0
    warmup_images: int | None = None
    decay: str = "constant"
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise ValueError(f"learning_rate.decay is '{self.decay}'; choose one of {DECAYS}")

    def at(self, step: int, steps: int, global_batch: int) -> float:
        """Learning rate of step `step` (from 0) in a run of `steps`, each on `global_batch` images."""
        warmup = self.warmup_steps if self.warmup_images is None else self.warmup_images / global_batch
        if step < warmup:
            return self.base * min(1.0, (step + 1) / warmup)
        if self.decay == "constant":
            return self.base
        done = (step - warmup) / max(1, steps - warmup)
        return self.base * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


@dataclass(frozen=True)
class Pace:
    """How far a run goes, and by what steps: each on `global_batch` images, each `checkpoint_every`-th saved."""

    steps: int
    global_batch: int
    schedule: LearningRate
    checkpoint_every: int

    def learning_rate(self, step: int) -> float:
        """Of step `step`, from 0."""
        return self.schedule.at(step, self.steps, self.global_batch)
