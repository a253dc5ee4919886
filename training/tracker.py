"""Metrics of a run: one line of JSON a step in metrics.jsonl, and the same to Weights & Biases."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.wandb_session import is_online

if TYPE_CHECKING:
    from training.wandb_run import WandbRun

MODES = ("auto", "online", "offline", "disabled")
X_AXES = ("step", "images_seen")


class Tracker:
    """Writes metrics on the main rank; on the others it does nothing.

    mode: 'auto' is online where WANDB_API_KEY is set and offline elsewhere. x_axis, rewind: see WandbRun. Lines beyond
    the step that a run resumes at are cut, so that steps neither repeat nor vanish.
    """

    def __init__(
        self,
        folder: Path,
        is_main: bool,
        config: dict[str, Any],
        project: str,
        mode: str,
        x_axis: str,
        rewind: bool,
        resume_step: int,
    ) -> None:
        for key, value, known in (("mode", mode, MODES), ("x_axis", x_axis, X_AXES)):
            if value not in known:
                raise ValueError(f"tracker.{key} is '{value}'; choose one of {known}")
        self._file: Any = None
        self._wandb: WandbRun | None = None
        if not is_main:
            return
        path = folder / "metrics.jsonl"
        # A run without a checkpoint begins anew: the line of step 0 of the attempt before goes too.
        _cut_after(path, resume_step or -1)
        self._file = path.open("a", buffering=1)  # whole lines, so that `flush` may come from another thread
        if mode != "disabled":
            from training.wandb_run import WandbRun, rows_of

            self._wandb = WandbRun(folder, config, project, is_online(mode), x_axis, rewind, resume_step, rows_of(path))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records scalars of one step."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        if self._wandb is not None:
            self._wandb.log(step, metrics)

    def log_pictures(self, step: int, path: Path) -> None:
        """Shows the picture file of a step on the dashboard, before its metrics; the run folder has it already."""
        if self._wandb is not None:
            self._wandb.log_pictures(step, path)

    def alert(self, title: str, text: str, is_error: bool) -> None:
        """Sends an alert to those who follow the run."""
        if self._wandb is not None:
            self._wandb.alert(title, text, is_error)

    def flush(self) -> None:
        """Brings every line to the disk; a checkpoint does it before it counts, so that the log never lags behind one.

        May be called in another thread than `log`.
        """
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self, failed: bool) -> None:
        """Ends the log and the W&B run. failed: by an error."""
        if self._file is not None:
            self.flush()
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish(failed)


def _cut_after(path: Path, step: int) -> None:
    """Drops lines of later steps than `step`, and a last line that a crash tore."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["step"] <= step:
            kept.append(line)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(line + "\n" for line in kept))
    partial.replace(path)
