"""Where a run is: what a checkpoint keeps of it beside the engines' tensors."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from training.checkpoint_files import Manifest
from training.tasks import Task


@dataclass
class TrainState:
    """Where the run is, and what was wrong with its samples so far, by reason. All else follows from the step.

    batches_left_out: whole steps' samples that it went past without training on them, as it went back `roll_backs`
    times to a checkpoint from before a spike.
    """

    step: int = 0
    images_seen: int = 0
    bad_samples: Counter[str] = field(default_factory=Counter)
    batches_left_out: int = 0
    roll_backs: int = 0

    @property
    def batch(self) -> int:
        """Whose samples the next step takes, those of the numbers [batch · G, (batch + 1) · G)."""
        return self.step + self.batches_left_out

    def advance(self, images: int, bad_samples: Counter[str]) -> None:
        """A step was made, on so many images."""
        self.step += 1
        self.images_seen += images
        self.bad_samples += bad_samples

    def metrics(self) -> dict[str, float]:
        """What a step's row says of it, and the time."""
        row: dict[str, float] = {"images_seen": self.images_seen, "time": time.time()}
        if self.roll_backs:
            row |= {"train/roll_backs": self.roll_backs, "train/batches_left_out": self.batches_left_out}
        return row | {f"data/bad/{reason}": count for reason, count in self.bad_samples.items()}

    def kept(self, task: Task) -> dict[str, Any]:
        """What a checkpoint's manifest keeps beside the engines' tensors, the task's part included."""
        guard = task.engines["model"].guard
        kept: dict[str, Any] = {} if guard is None else {"loss_spikes": guard.state()}
        if self.roll_backs:
            kept |= {"batches_left_out": self.batches_left_out, "roll_backs": self.roll_backs}
        if scaling := {name: engine.loss_scaling for name, engine in task.engines.items() if engine.loss_scaling}:
            kept |= {"loss_scaling": scaling}
        return task.extra_state() | {"bad_samples": dict(self.bad_samples)} | kept

    @classmethod
    def of(cls, manifest: Manifest, task: Task) -> TrainState:
        """Where the run was when the checkpoint was saved; the task gets its part of it."""
        extra = manifest.extra
        task.load_extra_state(extra)
        if (guard := task.engines["model"].guard) is not None and (spikes := extra.get("loss_spikes")):
            guard.load_state(spikes)
        for name, scaling in extra.get("loss_scaling", {}).items():
            task.engines[name].set_loss_scaling(scaling)
        left_out, roll_backs = extra.get("batches_left_out", 0), extra.get("roll_backs", 0)
        return cls(manifest.step, manifest.images_seen, Counter(extra["bad_samples"]), left_out, roll_backs)
