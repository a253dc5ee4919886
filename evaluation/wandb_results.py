"""Results in W&B, beside the run that was measured: curves over its steps, and a sweep as a table with pictures."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from evaluation.protocol import Protocol
from evaluation.results import Result
from evaluation.table import columns
from evaluation.wandb_session import ID_FILE, begin, is_online

log = logging.getLogger(__name__)

STEP = "training_step"


def log_result(run_folder: Path, result: Result) -> None:
    """A point at the step that was measured, for every measure: eval/NAME.

    All results of a run by one protocol are one W&B run, in the run's group. Nothing where the run has no tracker.
    """
    rows = {f"eval/{name}": value for name, value in columns(result.measured).items() if value is not None}
    name = result.protocol["name"]
    _send(run_folder, name, result, lambda wandb, run: run.log({STEP: result.step, **rows}))


def log_sweep(
    run_folder: Path, protocols: Sequence[Protocol], results: Sequence[Result], grids: Sequence[Path], on: Sequence[str]
) -> None:
    """A table of all settings with their pictures, and the distance against each of the measures `on` as a plot."""
    measures = list(columns(results[0].measured))

    def send(wandb: Any, run: Any) -> None:
        names = ["guidance scale", "steps", *measures]
        rows = [
            [protocol.guidance_scale, protocol.sampler_steps, *(columns(result.measured)[name] for name in measures)]
            for protocol, result in zip(protocols, results, strict=True)
        ]
        pictured = [[*row, wandb.Image(str(grid))] for row, grid in zip(rows, grids, strict=True)]
        table, numbers = wandb.Table([*names, "pictures"], pictured), wandb.Table(names, rows)
        distance = results[0].measured["frechet_name"]
        plots = {f"sweep/{name}": wandb.plot.scatter(numbers, name, distance, f"{distance}, {name}") for name in on}
        run.log({STEP: results[0].step, "sweep/settings": table, **plots})

    _send(run_folder, f"{results[0].protocol['name']} sweep", results[0], send)


def _send(run_folder: Path, title: str, result: Result, send: Callable[[Any, Any], None]) -> None:
    """Has `send(wandb, run)` log to the W&B run of the results by a protocol, where the measured run logs itself."""
    tracker = _tracker_of(run_folder)
    if tracker is None or tracker["mode"] == "disabled":
        return
    import wandb

    number = _number(run_folder, f"{title} {result.protocol_hash}")
    name = f"{run_folder.name}: {title}"
    about = {"protocol": result.protocol, "weights": result.weights, "run": run_folder.name}

    def begun(online: bool) -> Any:
        group = run_folder.name
        return begin(run_folder, tracker["project"], name, number, about, online, group=group, job_type="evaluate")

    try:
        run = begun(is_online(tracker["mode"]))
    except wandb.errors.Error as error:
        log.warning("W&B can't be reached, so this result is kept for `wandb sync`: %s", error)
        wandb.teardown()  # it would hold on to the run's name
        run = begun(online=False)
    run.define_metric("*", step_metric=STEP)
    send(wandb, run)
    run.finish()


def _tracker_of(run_folder: Path) -> Mapping[str, Any] | None:
    config = OmegaConf.load(run_folder / "config.yaml")
    assert isinstance(config, DictConfig)
    tracker = config.get("tracker")
    return None if tracker is None else {"project": tracker.project, "mode": tracker.mode}


def _number(run_folder: Path, measured_by: str) -> str:
    """The same for every result of a run that is measured by the same, another for every other."""
    file = run_folder / ID_FILE
    run = file.read_text().strip() if file.exists() else str(run_folder.resolve())
    return hashlib.sha256(f"{run} {measured_by}".encode()).hexdigest()[:8]
