"""Looks at the model while it trains: pictures, measurements."""

from __future__ import annotations

import time
from typing import Protocol

from training.watchdog import Watchdog

LOOK_SECONDS = 0.01
"""A look that took less wasn't one: monitors are asked at every step, and mostly have nothing to do."""


class Monitor(Protocol):
    """Looks at the model from time to time; must not disturb training's random numbers."""

    def look(self, step: int) -> dict[str, float]:
        """Called before the first step and after each; returns metrics to log, mostly none."""
        ...


def look(monitor: Monitor, step: int, watchdog: Watchdog) -> dict[str, float]:
    """The monitor's metrics of a step, and `eval/seconds` that it took, if it did anything."""
    started = time.perf_counter()
    with watchdog.paused():
        metrics = monitor.look(step)
    seconds = time.perf_counter() - started
    return metrics | ({"eval/seconds": seconds} if seconds > LOOK_SECONDS else {})
