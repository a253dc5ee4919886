"""Everything a run left in its folder, read for the report: metrics, configuration, pictures, results."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evaluation.gallery import Gallery, StepSamples, read_final_samples, read_step_samples
from evaluation.results import Result, read_results

METRICS, CONFIG, ATTRIBUTION = "metrics.jsonl", "config.yaml", "attribution.txt"
SECRET = re.compile(r"secret|key_id|token|password|api_key|access_key|credential", re.IGNORECASE)
NOT_SECRET = re.compile(r"^tokenizer|^tokens$|tokens$", re.IGNORECASE)
USER_IN_URL = re.compile(r"://[^/@\s]+@")
MASK = "***"
# A pause longer than this between two lines, and than 20 usual ones, is a stop and not training time.
PAUSE_SECONDS = 600.0


@dataclass(frozen=True)
class Series:
    """One metric over training: steps and values, both in order of steps."""

    steps: list[int]
    values: list[float]

    @property
    def last(self) -> float:
        """The newest value."""
        return self.values[-1]

    @property
    def counted(self) -> float:
        """The sum of all increases of a counter that may begin anew when a run is resumed."""
        before = [0.0, *self.values]
        return sum(b - a if b >= a else b for a, b in zip(before, self.values, strict=False))


@dataclass(frozen=True)
class RunRecord:
    """A run folder's contents.

    metrics: metric name -> its series; `steps`, `images_seen`, `training_seconds` and `pauses` are over the
    whole run; pauses are long stops between lines, not counted as training. config: None without a
    config.yaml, secrets masked.
    """

    name: str
    metrics: dict[str, Series]
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
        return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def read_run(run_folder: Path) -> RunRecord:
    """Reads what is there; a young run has little, and that is no error.

    Raises FileNotFoundError when the folder holds neither metrics nor a configuration.
    """
    if not (run_folder / METRICS).exists() and not (run_folder / CONFIG).exists():
        raise FileNotFoundError(f"{run_folder} holds neither {METRICS} nor {CONFIG}; is it a run folder?")
    lines = _read_lines(run_folder / METRICS)
    training_seconds, pauses = _training_time(lines)
    metrics = _columns(lines)
    _add_wait_fraction(metrics)
    config = _read_config(run_folder / CONFIG)
    attribution = run_folder / ATTRIBUTION
    return RunRecord(
        name=_name(run_folder, config),
        metrics=metrics,
        steps=max((int(line["step"]) for line in lines), default=0),
        images_seen=max((int(line.get("images_seen", 0)) for line in lines), default=0),
        training_seconds=training_seconds,
        pauses=pauses,
        samples=read_step_samples(run_folder),
        gallery=read_final_samples(run_folder),
        results=read_results(run_folder),
        config=config,
        attribution=attribution.read_text().splitlines() if attribution.exists() else [],
    )


def mask_secrets(value: Any, key: str = "") -> Any:
    """The same configuration with secrets, and user names in URLs, replaced by ***."""
    if isinstance(value, dict):
        return {name: mask_secrets(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [mask_secrets(item, key) for item in value]
    if SECRET.search(key) and not NOT_SECRET.search(key) and value is not None and not isinstance(value, bool):
        return MASK
    return USER_IN_URL.sub(f"://{MASK}@", value) if isinstance(value, str) else value


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The file's JSON objects in order; a line that was cut off by a crash is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
    return lines


def _columns(lines: list[dict[str, Any]]) -> dict[str, Series]:
    """Metrics are the numbers whose name has a group: "train/loss"; of two lines on one step the later holds."""
    columns: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, value in line.items():
            if "/" in name and isinstance(value, int | float) and not isinstance(value, bool):
                columns.setdefault(name, {})[int(line["step"])] = float(value)
    return {name: Series(sorted(points), [points[step] for step in sorted(points)]) for name, points in columns.items()}


def _add_wait_fraction(metrics: dict[str, Series]) -> None:
    """data/wait_fraction: seconds a step waited for its data, as a share of the step's seconds."""
    waits, steps = metrics.get("data/wait_seconds"), metrics.get("speed/step_seconds")
    if waits is None or steps is None:
        return
    seconds = dict(zip(steps.steps, steps.values, strict=True))
    points = [(s, w / seconds[s]) for s, w in zip(waits.steps, waits.values, strict=True) if seconds.get(s, 0) > 0]
    metrics["data/wait_fraction"] = Series([s for s, _ in points], [share for _, share in points])


def _training_time(lines: list[dict[str, Any]]) -> tuple[float, int]:
    """Seconds between lines without the pauses in which nothing ran, and the number of pauses."""
    times = [float(line["time"]) for line in lines if "time" in line]
    gaps = [max(0.0, later - earlier) for earlier, later in itertools.pairwise(times)]
    if not gaps:
        return 0.0, 0
    limit = max(PAUSE_SECONDS, 20 * statistics.median(gaps))
    running = [gap for gap in gaps if gap <= limit]
    return sum(running), len(gaps) - len(running)


def _read_config(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    config = yaml.safe_load(path.read_text())
    return mask_secrets(config) if isinstance(config, dict) else None


def _name(run_folder: Path, config: dict[str, Any] | None) -> str:
    run = (config or {}).get("run")
    return str(run["name"]) if isinstance(run, dict) and run.get("name") else run_folder.resolve().name


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorts rank2 before rank10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]
