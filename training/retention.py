"""Which checkpoints of a run stay."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from training.checkpoint_files import MANIFEST, complete_checkpoints, step_of


@dataclass(frozen=True)
class Retention:
    """The newest `keep` checkpoints stay, and for ever those of every step that `keep_every` divides (None: no other).

    Raises ValueError when one of them is below 1.
    """

    keep: int = 2
    keep_every: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("keep", self.keep), ("keep_every", self.keep_every)):
            if value is not None and value < 1:
                raise ValueError(f"checkpoint.{name} is {value}; it must be at least 1")

    def keeps_for_ever(self, step: int) -> bool:
        """Whether the checkpoint of that step stays however many come after it."""
        return self.keep_every is not None and step % self.keep_every == 0

    def superseded(self, steps: Iterable[int], newest: int) -> list[int]:
        """Which of these steps' complete checkpoints must go now that that of `newest` is complete."""
        older = sorted((step for step in steps if step < newest), reverse=True)
        return [step for step in older[self.keep - 1 :] if not self.keeps_for_ever(step)]

    def apply(self, newest: Path, held: Collection[Path] = ()) -> None:
        """Removes what must go now that `newest` is complete, out of its folder: older checkpoints but those that are
        `held`, and older folders that never became one, or that were found damaged. Raises OSError."""
        complete = {step_of(path): path for path in complete_checkpoints(newest.parent)}
        for step in self.superseded(complete, step_of(newest)):
            if complete[step] not in held:
                # The manifest goes first, so that a torn removal is never taken for a checkpoint.
                (complete[step] / MANIFEST).unlink()
        for path in newest.parent.glob("step-*"):
            if path < newest and not (path / MANIFEST).exists():
                shutil.rmtree(path)
