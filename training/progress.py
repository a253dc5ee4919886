"""One live line on a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

PLAIN_LINE_SECONDS = 15.0


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as a person writes them: 1:02:03 or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class Progress:
    """Step, loss, rate, data wait and time left, on stderr; nothing where `shown` is False."""

    def __init__(self, name: str, total: int, start: int, shown: bool) -> None:
        self.name = name
        self.total = total
        self.start = start
        self.step = start
        self.shown = shown
        self._live = sys.stderr.isatty()
        self._started = self._printed = time.monotonic()
        self._loss = float("nan")
        self._images = self._waited = 0.0
        self._bad = 0.0

    def advance(self, loss: float, row: Mapping[str, float]) -> None:
        """Counts one step, given its loss and its row of metrics."""
        self.step += 1
        # A fast exponential mean: single losses jump with their timesteps.
        self._loss = loss if self._loss != self._loss else 0.95 * self._loss + 0.05 * loss
        self._images += row["speed/images_per_second"] * row["speed/step_seconds"]
        self._waited += row["data/wait_seconds"]
        self._bad = sum(value for key, value in row.items() if key.startswith("data/bad/"))
        now = time.monotonic()
        due = now - self._printed > (0.2 if self._live else PLAIN_LINE_SECONDS)
        if self.shown and (due or self.step in (self.start + 1, self.total)):
            self._print(now)

    def close(self, word: str) -> None:
        """Ends the line."""
        if self.shown:
            elapsed = duration(time.monotonic() - self._started)
            print(
                f"{chr(10) if self._live else ''}{self.name}: {word} at step {self.step} after {elapsed}",
                file=sys.stderr,
            )

    def _print(self, now: float) -> None:
        self._printed = now
        elapsed = max(1e-9, now - self._started)
        left = elapsed / (self.step - self.start) * (self.total - self.step)
        line = (
            f"{self.name} {self.step:,}/{self.total:,} {self.step / self.total:4.0%} | loss {self._loss:.4f} | "
            f"{self._images / elapsed:.1f} images/s | data wait {self._waited / elapsed:.1%} | "
            f"{f'bad samples {self._bad:.0f} | ' if self._bad else ''}{duration(elapsed)}, {duration(left)} left"
        )
        print(f"\r{line}\x1b[K" if self._live else line, end="" if self._live else "\n", file=sys.stderr, flush=True)


class Bar:
    """Progress of work that comes in known pieces, on stderr; nothing where `shown` is False."""

    def __init__(self, name: str, total: int, shown: bool) -> None:
        self.name = name
        self.total = total
        self.done = 0
        self.shown = shown
        self._live = sys.stderr.isatty()
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self.shown:
            elapsed = time.monotonic() - self._started
            rate = self.done / max(1e-9, elapsed)
            text = f"{self.name}: {self.done} of {self.total} in {duration(elapsed)}, {rate:.1f} a second"
            print(f"\r{text}\x1b[K" if self._live else text, file=sys.stderr, flush=True)

    def advance(self, count: int) -> None:
        """Counts pieces done."""
        self.done += count
        now = time.monotonic()
        if self.shown and now - self._printed > (0.2 if self._live else PLAIN_LINE_SECONDS):
            self._printed = now
            elapsed = now - self._started
            left = elapsed / self.done * (self.total - self.done)
            text = f"{self.name}: {self.done}/{self.total} | {self.done / elapsed:.1f} a second | {duration(left)} left"
            print(
                f"\r{text}\x1b[K" if self._live else text, end="" if self._live else "\n", file=sys.stderr, flush=True
            )
