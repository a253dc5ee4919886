"""Everything a run left in its folder, read for the report: metrics, configuration, pictures, results."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evaluation.gallery import Gallery, StepSamples, read_final_samples, read_step_samples
from evaluation.results import Result, read_results
from evaluation.run_metrics import METRICS, Series, read_metrics
from training.credentials import masked

CONFIG, ATTRIBUTION, STARTS = "config.yaml", "attribution.txt", "starts.jsonl"
# A pause longer than this between two lines, and than 20 usual ones, is a stop and not training time.
PAUSE_SECONDS = 600.0


@dataclass(frozen=True)
class RunRecord:
    """A run folder's contents.

    metrics: metric name -> its series; `steps`, `images_seen`, `training_seconds` and `pauses` are over the
    whole run; pauses are long stops between lines, not counted as training. seen, times: images seen, and the
    clock in seconds, at each step; None where no line tells. restarts: steps that later starts went on from.
    config: None without a config.yaml, credentials masked.
    """

    name: str
    metrics: dict[str, Series]
    seen: Series | None
    times: Series | None
    restarts: list[int]
    steps: int
    images_seen: int
    training_seconds: float
    pauses: int
    samples: list[StepSamples]
    gallery: Gallery | None
    results: list[Result]
    config: dict[str, Any] | None
    attribution: list[str]

    @property
    def task(self) -> str:
        """The task's name in the configuration, or nothing."""
        task = (self.config or {}).get("task")
        return str(task.get("name", "")) if isinstance(task, dict) else ""

    def series(self, name: str) -> Series | None:
        """The metric's series, or None when it was never logged."""
        return self.metrics.get(name)

    def matching(self, prefix: str) -> dict[str, Series]:
        """Metrics whose name starts with the prefix, keyed by the rest of the name, in natural order."""
        found = {name.removeprefix(prefix): series for name, series in self.metrics.items() if name.startswith(prefix)}
        return dict(sorted(found.items(), key=lambda item: natural(item[0])))


def read_run(run_folder: Path) -> RunRecord:
    """Reads what is there; a young run has little, and that is no error.

    Raises FileNotFoundError when the folder holds neither metrics nor a configuration.
    """
    if not (run_folder / METRICS).exists() and not (run_folder / CONFIG).exists():
        raise FileNotFoundError(f"{run_folder} holds neither {METRICS} nor {CONFIG}; is it a run folder?")
    steps, metrics = read_metrics(run_folder / METRICS)
    seen, times = metrics.pop("images_seen", None), metrics.pop("time", None)
    training_seconds, pauses = _training_time(times)
    _add_wait_fraction(metrics)
    config = _read_config(run_folder / CONFIG)
    attribution = run_folder / ATTRIBUTION
    return RunRecord(
        name=_name(run_folder, config),
        metrics=metrics,
        seen=seen,
        times=times,
        restarts=_restarts(run_folder / STARTS),
        steps=int(steps.steps.max(initial=0)),
        images_seen=0 if seen is None else int(seen.values.max()),
        training_seconds=training_seconds,
        pauses=pauses,
        samples=read_step_samples(run_folder),
        gallery=read_final_samples(run_folder),
        results=read_results(run_folder),
        config=config,
        attribution=attribution.read_text().splitlines() if attribution.exists() else [],
    )


def _add_wait_fraction(metrics: dict[str, Series]) -> None:
    """data/wait_fraction, where it was not logged: seconds a step waited for its data, as a share of the step's."""
    waits, steps = metrics.get("data/wait_seconds"), metrics.get("speed/step_seconds")
    if waits is None or steps is None or "data/wait_fraction" in metrics:
        return
    both, of_waits, of_steps = np.intersect1d(waits.steps, steps.steps, assume_unique=True, return_indices=True)
    wait, seconds = waits.values[of_waits], steps.values[of_steps]
    running = seconds > 0
    if running.any():
        metrics["data/wait_fraction"] = Series(both[running], wait[running] / seconds[running])


def _training_time(times: Series | None) -> tuple[float, int]:
    """Seconds between lines without the pauses in which nothing ran, and the number of pauses."""
    if times is None or len(times.values) < 2:
        return 0.0, 0
    gaps = np.maximum(np.diff(times.values), 0.0)
    running = gaps <= max(PAUSE_SECONDS, 20 * float(np.median(gaps)))
    return float(gaps[running].sum()), int((~running).sum())


def _restarts(path: Path) -> list[int]:
    """The steps that every start but the first went on from."""
    if not path.exists():
        return []
    steps = []
    for text in path.read_text().splitlines():
        try:
            start = json.loads(text)
        except json.JSONDecodeError:  # cut off by a crash
            continue
        if isinstance(start, dict) and isinstance(start.get("step"), int):
            steps.append(start["step"])
    return [step for step in steps[1:] if step > 0]


def _read_config(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    config = yaml.safe_load(path.read_text())
    return masked(config) if isinstance(config, dict) else None


def _name(run_folder: Path, config: dict[str, Any] | None) -> str:
    run = (config or {}).get("run")
    return str(run["name"]) if isinstance(run, dict) and run.get("name") else run_folder.resolve().name


def natural(text: str) -> list[tuple[int, str]]:
    """Sorts rank2 before rank10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]
