"""One live line on a terminal, plain lines in a log file."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping

PLAIN_LINE_SECONDS = 15.0
RECENT_STEPS = 50
"""That rate and data wait are of."""


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as a person writes them: 1:02:03 or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class Progress:
    """Step, loss, rate, data wait, use of the GPU, memory and time left, on stderr; nothing where `shown` is False.

    On a terminal one line that is written over and over, as wide as the terminal is; in a file lines every 15 seconds.
    """

    def __init__(self, name: str, total: int, start: int, shown: bool) -> None:
        self.name = name
        self.total = total
        self.start = start
        self.step = start
        self.shown = shown
        self._live = sys.stderr.isatty()
        self._started = self._printed = time.monotonic()
        self._loss = float("nan")
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=RECENT_STEPS)

    def advance(self, row: Mapping[str, float]) -> None:
        """Counts one step, given its row of metrics."""
        self.step += 1
        # A fast exponential mean: single losses jump with their timesteps.
        loss = row["train/loss"]
        self._loss = loss if self._loss != self._loss else 0.95 * self._loss + 0.05 * loss
        seconds = row["speed/step_seconds"]
        self._recent.append((row["speed/images_per_second"] * seconds, row["data/wait_seconds"], seconds))
        now = time.monotonic()
        due = now - self._printed > (0.2 if self._live else PLAIN_LINE_SECONDS)
        if self.shown and (due or self.step in (self.start + 1, self.total)):
            self._printed = now
            self._print(self._parts(row, max(1e-9, now - self._started)))

    def close(self, word: str) -> None:
        """Ends the line."""
        if self.shown:
            elapsed = duration(time.monotonic() - self._started)
            print(
                f"{chr(10) if self._live else ''}{self.name}: {word} at step {self.step} after {elapsed}",
                file=sys.stderr,
            )

    def _parts(self, row: Mapping[str, float], elapsed: float) -> list[str]:
        """What there is to say, the most important first."""
        images, waited, seconds = (sum(column) for column in zip(*self._recent, strict=True))
        left = elapsed / (self.step - self.start) * (self.total - self.step)
        bad = sum(value for key, value in row.items() if key.startswith("data/bad/"))
        parts = [
            f"{self.name} {self.step:,}/{self.total:,} {self.step / self.total:4.0%}",
            f"loss {self._loss:.4f}",
            f"{duration(left)} left",
            f"{images / seconds:.1f} images/s",
            f"data wait {waited / seconds:.1%}",
        ]
        if "speed/mfu" in row:
            parts.append(f"MFU {row['speed/mfu']:.1%}")
        parts.append(f"{row['memory/peak_gib']:.1f} GiB")
        if bad:
            parts.append(f"bad samples {bad:.0f}")
        return [*parts, f"{duration(elapsed)} so far"]

    def _print(self, parts: list[str]) -> None:
        if not self._live:
            print(" | ".join(parts), file=sys.stderr, flush=True)
            return
        # A line that is wider than the terminal would leave one behind each time that it is written over.
        width = shutil.get_terminal_size().columns - 1
        while len(parts) > 1 and len(" | ".join(parts)) > width:
            parts = parts[:-1]
        print(f"\r{' | '.join(parts)[:width]}\x1b[K", end="", file=sys.stderr, flush=True)


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
