"""Which checkpoints of a run stay."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from training.checkpoint_files import (
    MANIFEST,
    CheckpointError,
    Manifest,
    complete_checkpoints,
    load_manifest,
    step_of,
)

MODES = ("min", "max")
MEASURED = "measured"
"""Under this name a manifest keeps the metric that checkpoints are compared by."""

ManifestOf = Callable[[int], Manifest]
"""That of the checkpoint of a step. Raises CheckpointError."""


@dataclass(frozen=True)
class Best:
    """By which metric checkpoints are compared, as it was at the step of each.

    mode: "min", the less the better, or "max". Raises ValueError for another one.
    """

    metric: str
    mode: str

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"checkpoint.keep_best.mode is '{self.mode}'; choose one of {MODES}")

    def of(self, steps: Iterable[int], manifest_of: ManifestOf) -> int | None:
        """The step of the best of these, and of equals the newest; None where none was measured."""
        sign = 1 if self.mode == "max" else -1
        values = {}
        for step in steps:
            with contextlib.suppress(CheckpointError):
                value = manifest_of(step).extra.get(MEASURED, {}).get(self.metric)
                if value is not None and math.isfinite(value):
                    values[step] = sign * value
        return max(values, key=lambda step: (values[step], step), default=None)


@dataclass(frozen=True)
class Retention:
    """The newest `keep` checkpoints stay, and for ever those of every step that `keep_every` divides (None: no other);
    and the best one, until there is a better one (None: it goes like the others).

    Raises ValueError when one of them is below 1.
    """

    keep: int = 2
    keep_every: int | None = None
    best: Best | None = None

    def __post_init__(self) -> None:
        for name, value in (("keep", self.keep), ("keep_every", self.keep_every)):
            if value is not None and value < 1:
                raise ValueError(f"checkpoint.{name} is {value}; it must be at least 1")

    def measured(self, row: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """What of a step's metrics its checkpoint keeps, to be compared by."""
        if self.best is None or self.best.metric not in row:
            return {}
        return {MEASURED: {self.best.metric: row[self.best.metric]}}

    def keeps_for_ever(self, step: int) -> bool:
        """Whether the checkpoint of that step stays however many come after it."""
        return self.keep_every is not None and step % self.keep_every == 0

    def superseded(self, steps: Iterable[int], newest: int, manifest_of: ManifestOf) -> list[int]:
        """Which of these steps' complete checkpoints must go now that that of `newest` is complete."""
        older = sorted((step for step in steps if step < newest), reverse=True)
        best = None if self.best is None else self.best.of([newest, *older], manifest_of)
        return [step for step in older[self.keep - 1 :] if step != best and not self.keeps_for_ever(step)]

    def apply(self, newest: Path, held: Collection[Path] = ()) -> None:
        """Removes what must go now that `newest` is complete, out of its folder: older checkpoints but those that are
        `held`, and older folders that never became one, or that were found damaged. Raises OSError."""
        complete = {step_of(path): path for path in complete_checkpoints(newest.parent)}
        for step in self.superseded(complete, step_of(newest), lambda step: load_manifest(complete[step])):
            if complete[step] not in held:
                # The manifest goes first, so that a torn removal is never taken for a checkpoint.
                (complete[step] / MANIFEST).unlink()
        for path in newest.parent.glob("step-*"):
            if path < newest and not (path / MANIFEST).exists():
                shutil.rmtree(path)
