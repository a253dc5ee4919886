"""metrics.jsonl, read a line at a time: a run of 600,000 steps fits in memory as columns, not as lines."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

METRICS = "metrics.jsonl"
# What a line tells of itself, beside its metrics.
OWN = ("images_seen", "time")


@dataclass(frozen=True, eq=False)
class Series:
    """One metric over training, in order of steps: steps int64 [N], each once, and values float64 [N]; N is not 0."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> float:
        """The newest value."""
        return float(self.values[-1])

    @property
    def counted(self) -> float:
        """The sum of all increases of a counter that may begin anew when a run is resumed."""
        changes = np.diff(self.values, prepend=0.0)
        return float(np.where(changes >= 0, changes, self.values).sum())

    def finite(self) -> Series:
        """Without the values that are not finite; may be empty."""
        kept = np.isfinite(self.values)
        return self if kept.all() else Series(self.steps[kept], self.values[kept])


def read_metrics(path: Path) -> tuple[Series, dict[str, Series]]:
    """Steps of all lines (its values are the steps too), and series by name; no file is a run without lines.

    Metrics are the numbers whose name has a group: "train/loss"; beside them `images_seen` and `time`. Of two lines
    on one step the later holds; a line that was cut off by a crash is left out.
    """
    columns: dict[str, tuple[array[int], array[float]]] = {"step": (array("q"), array("d"))}
    for line in _lines(path):
        step = int(line["step"])
        for name, value in line.items():
            told = "/" in name or name in OWN or name == "step"
            if told and isinstance(value, int | float) and not isinstance(value, bool):
                column = columns.get(name)
                if column is None:
                    column = columns[name] = (array("q"), array("d"))
                column[0].append(step)
                column[1].append(value)
    series = {name: _in_order(np.array(steps), np.array(values)) for name, (steps, values) in columns.items()}
    return series.pop("step"), series


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open() as file:
        for text in file:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict) and "step" in line:
                yield line


def _in_order(steps: np.ndarray, values: np.ndarray) -> Series:
    if len(steps) and not (np.diff(steps) > 0).all():
        order = np.argsort(steps, kind="stable")
        steps, values = steps[order], values[order]
        last = np.append(np.diff(steps) > 0, True)
        steps, values = steps[last], values[last]
    return Series(steps, values)
