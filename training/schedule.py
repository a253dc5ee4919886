"""Learning rate as a function of the step alone, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from dataclasses import dataclass

DECAYS = ("constant", "cosine")


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up over `warmup_steps`, then constant, or a half cosine to `floor` × base at the last step.

    base: absolute learning rate; floor: in [0, 1].
    """

    base: float
    warmup_steps: int = 0
    decay: str = "constant"
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise ValueError(f"learning_rate.decay is '{self.decay}'; choose one of {DECAYS}")

    def at(self, step: int, steps: int) -> float:
        """Learning rate of step `step` (from 0) in a run of `steps`."""
        if step < self.warmup_steps:
            return self.base * (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return self.base
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return self.base * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
