"""Goodput of a run while it runs."""

from __future__ import annotations

import time
from pathlib import Path

from evaluation.goodput import account, goodput


class GoodputMeter:
    """Counts productive seconds on, from what the run's record and rows tell of the starts before.

    Nothing is read but on the main rank, and what it returns there alone is of use.
    """

    def __init__(self, folder: Path, is_main: bool) -> None:
        before = account(folder) if is_main else goodput([], [], time.time())
        self._first = time.time() - before.counted  # as if it had never been stopped
        self._productive = before.productive
        self._told = {"run/restarts": float(before.restarts), "run/lost_steps": float(before.lost_steps)}

    def row(self, step_seconds: float, wait_seconds: float) -> dict[str, float]:
        """Counts a step, and returns `run/goodput`, `run/restarts` and `run/lost_steps` up to it."""
        self._productive += step_seconds - wait_seconds
        return {"run/goodput": self._productive / max(1e-9, time.time() - self._first), **self._told}
