"""Metrics of a run: one line of JSON a step in metrics.jsonl, and the same to Weights & Biases."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODES = ("auto", "online", "offline", "disabled")
WANDB_ID_FILE = "wandb_run_id"


class Tracker:
    """Writes metrics on the main rank; on the others it does nothing.

    mode: 'auto' is online where WANDB_API_KEY is set and offline elsewhere. A resumed run keeps its W&B id, and
    lines beyond the step it resumes at are cut, so that steps neither repeat nor vanish.
    """

    def __init__(
        self, folder: Path, is_main: bool, config: dict[str, Any], project: str, mode: str, resume_step: int
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"tracker.mode is '{mode}'; choose one of {MODES}")
        self._file: Any = None
        self._wandb: Any = None
        if not is_main:
            return
        path = folder / "metrics.jsonl"
        # A run without a checkpoint begins anew: the line of step 0 of the attempt before goes too.
        _cut_after(path, resume_step or -1)
        self._file = path.open("a", buffering=1)  # whole lines, so that `flush` may come from another thread
        if mode == "auto":
            mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
        if mode != "disabled":
            self._wandb = _start_wandb(folder, config, project, mode, resume_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records scalars of one step."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        if self._wandb is not None:
            self._wandb.log({**metrics, "step": step})

    def log_pictures(self, step: int, name: str, path: Path) -> None:
        """Shows a picture file on the dashboard; the run folder has it already."""
        if self._wandb is not None:
            import wandb

            self._wandb.log({name: wandb.Image(str(path)), "step": step})

    def flush(self) -> None:
        """Brings every line to the disk; a checkpoint does it before it counts, so that the log never lags behind one.

        May be called in another thread than `log`.
        """
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Ends the log and the W&B run."""
        if self._file is not None:
            self.flush()
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


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


def _start_wandb(folder: Path, config: dict[str, Any], project: str, mode: str, resume_step: int) -> Any:
    import wandb

    id_file = folder / WANDB_ID_FILE
    if not id_file.exists():
        id_file.write_text(secrets.token_hex(4))
    run = wandb.init(
        project=project,
        name=folder.name,
        id=id_file.read_text().strip(),
        resume="allow",
        dir=str(folder),
        config=config,
        mode="online" if mode == "online" else "offline",
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
    )
    # Our own step is the x-axis: W&B's counter starts anew when an offline run resumes.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run
