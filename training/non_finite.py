"""A step whose loss or gradient is infinite or not a number."""

from __future__ import annotations

import math

from training.agreement import WatchedBatches
from training.distributed import Distributed
from training.engine import NonFiniteUpdate


class NonFiniteStep(Exception):
    """Loss or gradient of a step is infinite or not a number; names the step and the samples.

    micro_batches: of each rank in turn, each with its loss and its samples' numbers. untouched: nothing was updated; of
    several engines, those that come before the one at fault may have been.
    """

    def __init__(
        self, message: str, step: int, micro_batches: list[list[tuple[float, list[int]]]], untouched: bool
    ) -> None:
        super().__init__(message)
        self.step = step
        self.micro_batches = micro_batches
        self.untouched = untouched

    def with_remedy(self, remedy: str) -> NonFiniteStep:
        """The same, with another sentence on what to do."""
        return NonFiniteStep(f"{self}. {remedy}", self.step, self.micro_batches, self.untouched)


def non_finite_step(
    ranks: Distributed, step: int, error: NonFiniteUpdate, watched: WatchedBatches, untouched: bool
) -> NonFiniteStep:
    """The error that names the samples: those of the micro-batches at fault, or all of the step. A collective."""
    everyone = ranks.gather_objects(list(zip(error.losses, watched.numbers, strict=True)))
    found = [(loss, numbers) for micro_batches in everyone for loss, numbers in micro_batches]
    if error.loss_is_finite:
        what = "gradient is infinite or not a number"
    else:
        found = [(loss, numbers) for loss, numbers in found if not math.isfinite(loss)]
        what = f"loss is {found[0][0]}"
    samples = sorted(number for _, numbers in found for number in numbers)
    made = "the step was not made" if untouched else "only a part of the step's updates was made"
    message = (
        f"{what} in step {step}, on samples {samples}; {made}, and the newest checkpoint is of before. "
        "Look at these samples, or lower learning_rate.base or engine.clip_norm"
    )
    return NonFiniteStep(message, step, everyone, untouched)
