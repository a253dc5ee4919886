"""Which checkpoints of a run stay."""

from __future__ import annotations

import shutil
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

    def apply(self, newest: Path) -> None:
        """Removes what must go now that `newest` is complete, out of its folder: older checkpoints, and older folders
        that never became one, or that were found damaged. Raises OSError."""
        older = [path for path in complete_checkpoints(newest.parent) if path < newest]
        for place, path in enumerate(older, start=2):
            if place > self.keep and not (self.keep_every and step_of(path) % self.keep_every == 0):
                # The manifest goes first, so that a torn removal is never taken for a checkpoint.
                (path / MANIFEST).unlink()
        for path in newest.parent.glob("step-*"):
            if path < newest and not (path / MANIFEST).exists():
                shutil.rmtree(path)
