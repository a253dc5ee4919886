"""Notices that no step was finished for too long, leaves every rank's stacks, and ends the process.

In a collective that hangs no rank can ask another one. So each has a thread of its own that watches its steps; ranks
tell one another by files in the run folder, and the lowest of those that can speak says which hang, and where.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType

import psutil

from training.failures import FAILURES, leave, path_of, ranks_that_left
from training.launch import tell_launcher

log = logging.getLogger(__name__)
HUNG_STATUS = 124
"""Exit status of `ldm train` when no step was finished for too long, as of timeout(1). The same command goes on."""
SLOW_STEP = 3.0
"""A first step may take so many times as long, as memory, caches and peers are cold; so may one after a long pause."""
OTHERS_SECONDS = 20.0
"""For the other ranks to notice, at most."""
LAST_WORD_SECONDS = 2.0
"""For the rank that speaks for all to end first, so that its word is the cause."""
OUR_CODE = Path(__file__).resolve().parents[1]
OUR_PACKAGES = ("training", "evaluation", "data", "models")
PASS_THROUGH = ("stopwatch.py",)  # wrap what others call: where a rank hangs is where they call it


class Watchdog:
    """Context manager: within it, a step must follow the one before within `seconds`; None: nothing is watched.

    folder, start: of the run, and the number of its start. rank, world: this process's. samples: tells of the samples
    that this rank reads for a step, and where they lie.

    Time doesn't count while it is `paused`, nor while this process was stopped (SIGSTOP, a suspended job). After a
    pause a step may take longer by as much, for other ranks may have been busy for longer. A thread that never gives
    Python's lock back stops this one too; it is known then by the word that it doesn't leave.
    """

    def __init__(
        self, seconds: float | None, folder: Path, start: int, rank: int, world: int, samples: Callable[[int], str]
    ) -> None:
        self.seconds = seconds
        self.folder = folder
        self.start = start
        self.rank = rank
        self.world = world
        self.samples = samples
        self._poll = min(5.0, (seconds or 1.0) / 20)
        self._step = 0
        self._last = self._deadline = float("inf")
        self._pauses = 0
        self._over = threading.Event()
        self._main = threading.main_thread()

    def __enter__(self) -> Watchdog:
        self._allow(SLOW_STEP * (self.seconds or 0.0))
        if self.seconds is not None:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    def finished(self, step: int) -> None:
        """That all ranks have made this step."""
        self._step = step
        self._allow(self.seconds or 0.0)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """For work that is no step and may take its time."""
        began = time.monotonic()
        self._pauses += 1
        try:
            yield
        finally:
            seconds = self.seconds or 0.0
            self._allow(min(seconds + time.monotonic() - began, SLOW_STEP * seconds))
            self._pauses -= 1

    def _allow(self, seconds: float) -> None:
        """From now on, until the next step is finished."""
        self._last = time.monotonic()
        self._deadline = self._last + seconds

    def _watch(self) -> None:
        assert self.seconds is not None
        before = time.monotonic()
        while not self._over.wait(self._poll):
            now = time.monotonic()
            if (stopped := now - before - self._poll) > self._poll:
                self._last += stopped
                self._deadline += stopped
            before = now
            if self._pauses:
                continue
            late = now > self._deadline
            # Ranks come to a hang at times that differ by up to a step: all shall tell of it.
            asked = now - self._last > self.seconds / 2 and bool(ranks_that_left(self.folder, self.start))
            if late or asked:
                self._end(now - self._last)

    def _end(self, seconds: float) -> None:
        # Should the run folder's file system hang as well.
        faulthandler.dump_traceback_later(3 * OTHERS_SECONDS, exit=True)
        place = self._place()
        path = path_of(self.folder, self.start, self.rank)
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("w") as file:
            file.write(f"no step was finished for {seconds:.0f} s: {place}\n")
            file.write(f"rank {self.rank} of {self.world}, host {socket.gethostname()}, process {os.getpid()}\n")
            file.write(f"step {self._step} is the last that was made; the next one's {self._samples()}\n\n")
            file.flush()
            faulthandler.dump_traceback(file)
        partial.replace(path)
        end = time.monotonic() + OTHERS_SECONDS
        while len(ranks_that_left(self.folder, self.start)) < self.world and time.monotonic() < end:
            time.sleep(0.1)
        if self.rank == min(ranks_that_left(self.folder, self.start)):
            self._speak(seconds)
        else:
            time.sleep(LAST_WORD_SECONDS)
            tell_launcher(f"rank {self.rank} hangs {place}", HUNG_STATUS)
        for child in psutil.Process().children(recursive=True):  # a data worker that hangs would outlive this process
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        os._exit(HUNG_STATUS)

    def _speak(self, seconds: float) -> None:
        """Says which ranks hang and where, and shows the stacks of one of each kind."""
        found: dict[str, list[int]] = defaultdict(list)
        for rank in sorted(ranks_that_left(self.folder, self.start)):
            with contextlib.suppress(OSError):
                first = path_of(self.folder, self.start, rank).read_text().splitlines()[0]
                found[first.partition(" s: ")[2] or first].append(rank)
        silent = sorted(set(range(self.world)) - {rank for ranks in found.values() for rank in ranks})
        words = [f"{_named(ranks)} {place}" for place, ranks in found.items()]
        if silent:
            words.append(f"{_named(silent)} left no word: stopped, or the machine is gone")
        message = (
            f"no step was finished for {seconds:.0f} s (watchdog.seconds={self.seconds:g}), step {self._step} is the "
            f"last that was made: {'; '.join(words)}. Stacks and samples of each rank are in "
            f"{self.folder / FAILURES}; the same command goes on from what was saved"
        )
        for ranks in found.values():
            log.error("%s", path_of(self.folder, self.start, ranks[0]).read_text())
        leave(self.folder, self.start, None, message)
        if not tell_launcher(f"error: {message}", HUNG_STATUS):
            print(f"error: {message}", file=sys.stderr, flush=True)

    def _samples(self) -> str:
        try:
            return self.samples(self._step)
        except Exception:  # nothing may keep the stacks from being written
            return f"samples can't be told: {traceback.format_exc(limit=1)}"

    def _place(self) -> str:
        """Where the main thread is: in which line of ours, and in what that called."""
        assert self._main.ident is not None
        frame: FrameType | None = sys._current_frames()[self._main.ident]
        inner = _named_frame(frame)
        while frame is not None and not _is_ours(frame):
            frame = frame.f_back
        ours = _named_frame(frame)
        return f"in {ours}" if ours == inner else f"in {ours}, in {inner}"


def _is_ours(frame: FrameType) -> bool:
    path = Path(frame.f_code.co_filename)
    if path.name in PASS_THROUGH or not path.is_relative_to(OUR_CODE):
        return False
    return path.relative_to(OUR_CODE).parts[0] in OUR_PACKAGES


def _named_frame(frame: FrameType | None) -> str:
    if frame is None:
        return "no code of ours"
    path = Path(frame.f_code.co_filename)
    short = path.relative_to(OUR_CODE) if _is_ours(frame) else Path(*path.parts[-2:])
    return f"{frame.f_code.co_name} ({short}:{frame.f_lineno})"


def _named(ranks: list[int]) -> str:
    """'rank 3', 'ranks 0-2, 5'."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], rank]
        else:
            runs.append([rank, rank])
    words = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {words}"
