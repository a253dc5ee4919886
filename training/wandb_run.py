"""A run in Weights & Biases: one run however often it is started, each step in it once."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from evaluation.gallery import captions_of, step_samples_path
from evaluation.wandb_session import ID_FILE, begin
from training.wandb_file import last_step

log = logging.getLogger(__name__)

PICTURES = "samples"


class WandbRun:
    """The W&B run of a run folder; W&B's own step is the optimizer's.

    W&B takes steps in their order, each once, and can't take one back. After a crash it may have steps beyond the
    checkpoint that training goes on from, which are made anew, with the same numbers; and it may lack some from before,
    that it hadn't sent. So it is asked which step it has last (offline: the run's files are), gets what it lacks from
    `rows`, and of steps that it has, nothing more.

    x_axis: metric that charts begin with, "step" or "images_seen". rewind: have W&B forget steps beyond `resume_step`,
    as they are to be others, after a change of settings; its cloud can do so, as a preview. rows: those of
    metrics.jsonl up to `resume_step`.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        project: str,
        online: bool,
        x_axis: str,
        rewind: bool,
        resume_step: int,
        rows: Iterator[Mapping[str, float]],
    ) -> None:
        import wandb

        self._wandb = wandb
        self._folder = folder
        id_file = folder / ID_FILE
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(4))
        self._id = id_file.read_text().strip()
        self._project = project
        self._config = config
        kept = last_step(folder / "wandb", self._id)  # before this start has a file there too
        try:
            self._run = self._begin(online, resume="allow")
        except wandb.errors.CommError as error:
            log.warning("W&B can't be reached, so this start is kept for `wandb sync`: %s", error)
            wandb.teardown()  # it would hold on to the run's name
            self._run = self._begin(online=False, resume="allow")
            has = resume_step
        else:
            has = self._run.starting_step - 1 if online else kept
        if rewind and online and has > resume_step:
            has = self._rewind(resume_step, has)
        if x_axis != "step":
            self._run.define_metric("*", step_metric=x_axis)
        self._next = has + 1
        if self._next <= resume_step:
            self._bring_up_to_date(rows)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of a step, whose pictures come before them."""
        if step < self._next:
            return
        self._run.log(dict(metrics), step=step, commit=True)
        self._next = step + 1

    def log_pictures(self, step: int, path: Path) -> None:
        """The pictures of a step."""
        if step >= self._next:
            picture = self._wandb.Image(str(path), caption=" | ".join(captions_of(path)))
            self._run.log({PICTURES: picture}, step=step, commit=False)

    def alert(self, title: str, text: str, is_error: bool) -> None:
        """Has W&B tell those who asked to be told."""
        self._run.alert(title, text, level="ERROR" if is_error else "WARN")

    def finish(self, failed: bool) -> None:
        """Ends the run, or this start of it."""
        self._run.finish(exit_code=int(failed))

    def _bring_up_to_date(self, rows: Iterator[Mapping[str, float]]) -> None:
        for row in rows:
            step = int(row["step"])
            if step >= self._next:
                if (pictures := step_samples_path(self._folder, step)).exists():
                    self.log_pictures(step, pictures)
                self.log(step, {name: value for name, value in row.items() if name != "step"})

    def _rewind(self, step: int, has: int) -> int:
        """Has W&B forget what comes after a step. Returns the step that it has last then."""
        self._run.finish()  # it rewinds none that runs
        try:
            self._run = self._begin(online=True, resume_from=f"{self._id}?_step={step}")
        except self._wandb.errors.Error as error:
            log.warning("W&B keeps steps %d to %d as they were, not as they are made now: %s", step + 1, has, error)
            self._wandb.teardown()  # it would hold on to the run's name
            self._run = self._begin(online=True, resume="allow")
            return has
        return step

    def _begin(self, online: bool, resume: Literal["allow"] | None = None, resume_from: str | None = None) -> Any:
        return begin(
            self._folder, self._project, self._folder.name, self._id, self._config, online, resume, resume_from
        )


def rows_of(path: Path) -> Iterator[dict[str, float]]:
    """The rows of a metrics.jsonl, one by one: it may be long."""
    with path.open() as file:
        for line in file:
            yield json.loads(line)
