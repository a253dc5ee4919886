"""Which updates are left out, as their loss or gradient is far beyond those before."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

SKIP, ROLL_BACK = "skip", "roll_back"
ACTIONS = (None, SKIP, ROLL_BACK)
"""What may be done about a spike: nothing but an alert (training.alerts); the update is left out; or the run goes back
to its newest checkpoint, and on with the samples that come after the spike."""


class LossSpikes(Exception):
    """So many updates in a row were left out that this is no spike any more."""


class RollBack(Exception):
    """The run is to go back to its newest checkpoint, and on with the samples after those of the step it is at."""


class SpikeGuard:
    """Judges each update before it is made, by the medians of the `window` updates that were made before it.

    loss, gradient_norm: an update with more than so many medians is left out; None: it doesn't count. most_in_a_row:
    more left out one after another are an error. Nothing is left out before `window` updates were made. rolls_back: a
    spike sends the run back to its newest checkpoint, where it has one.

    What it judges by is part of the run's state, and the same on all ranks: a resumed run leaves out the same updates.
    """

    def __init__(
        self,
        loss: float | None,
        gradient_norm: float | None,
        window: int,
        most_in_a_row: int,
        rolls_back: bool = False,
    ) -> None:
        self.limits = {"loss": loss, "gradient norm": gradient_norm}
        self.window = window
        self.most_in_a_row = most_in_a_row
        self.rolls_back = rolls_back
        self.left_out = 0
        self.in_a_row = 0
        self._made: deque[dict[str, float]] = deque(maxlen=window)

    def judge(self, loss: float, gradient_norm: float) -> str | None:
        """Why the update with this mean loss and this norm of the gradient, before clipping, is left out; None: it is
        made. Each update is judged once."""
        found = {"loss": loss, "gradient norm": gradient_norm}
        reasons = []
        for name, limit in self.limits.items():
            if limit is None or len(self._made) < self.window:
                continue
            usual = statistics.median(made[name] for made in self._made)
            if usual > 0 and found[name] > limit * usual:
                reasons.append(
                    f"its {name} is {found[name]:.4g}, {found[name] / usual:.1f} times the median of the "
                    f"{self.window} updates before"
                )
        if not reasons:
            self._made.append(found)
            self.in_a_row = 0
            return None
        self.left_out += 1
        self.in_a_row += 1
        return " and ".join(reasons)

    def check(self, roll_backs: int = 0) -> None:
        """Raises LossSpikes when too many updates in a row were left out, or the run went back to one checkpoint too
        often."""
        if max(self.in_a_row, roll_backs) > self.most_in_a_row:
            often = f"{self.in_a_row} updates in a row were left out"
            if roll_backs > self.in_a_row:
                often = f"the run went back to the same checkpoint {roll_backs} times"
            raise LossSpikes(
                f"loss_spike.most_in_a_row={self.most_in_a_row}: {often}, so this is no spike. Go back to a checkpoint "
                "of before with a lower learning_rate.base, or give higher limits (loss_spike.loss, "
                "loss_spike.gradient_norm)"
            )

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"left_out": self.left_out, "in_a_row": self.in_a_row, "made": list(self._made)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state` gave. With another window, as many as there are of it."""
        self.left_out, self.in_a_row = state["left_out"], state["in_a_row"]
        self._made = deque(state["made"], maxlen=self.window)
