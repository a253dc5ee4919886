"""Where a step's time goes, without waiting for anybody to find out."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch


class Stopwatch:
    """Seconds by part, added up until they are taken.

    On a CPU they are the clock's. A GPU does its work later than it is told to: its parts lie between two events in its
    stream, and are read when it has come past them, which `take` doesn't wait for.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._spare: list[torch.cuda.Event] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done within it belongs to this part."""
        if self._on_gpu:
            begin, end = self._event(), self._event()
            begin.record()
            try:
                yield
            finally:
                end.record()
                self._open.append((name, begin, end))
            return
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """Seconds by part since the last call; of a GPU, those of parts that it has done."""
        waiting = []
        for name, begin, end in self._open:
            if end.query():
                self._seconds[name] += begin.elapsed_time(end) / 1e3
                self._spare += [begin, end]
            else:
                waiting.append((name, begin, end))
        self._open = waiting
        taken, self._seconds = self._seconds, defaultdict(float)
        return dict(taken)

    def _event(self) -> torch.cuda.Event:
        return self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)


class TimedCollectives:
    """A backend's collectives, which take what they take on the part "communication" of a stopwatch."""

    def __init__(self, backend: Any, times: Stopwatch) -> None:
        self.backend = backend
        self.times = times

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.backend, name)
        if not name.startswith(("all_gather", "all_reduce", "reduce", "broadcast")):
            return attribute

        @functools.wraps(attribute)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.times.part("communication"):
                return attribute(*arguments, **options)

        self.__dict__[name] = timed
        return timed
