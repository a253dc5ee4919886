"""Starts the same command again and again, as Slurm does with a job that goes back into the queue."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from tests.conftest import PROJECT
from training.checkpoint_files import MANIFEST, complete_checkpoints
from training.launch import RANK_MARK
from training.starts import last_row, read_starts

FINISHED, NOT_RETRIED = 0, 2
"""Exit statuses after which slurm/train.sbatch doesn't requeue its job."""
MARK = "LDM_CHAOS_PROCESS"
"""In the environment of all processes of a run, with its folder: what still has it in the end was left behind."""
END_SECONDS = 90.0
"""Within which a start ends that has lost a rank, or was asked to stop; or the watchdog ends it."""
POLL_SECONDS = 0.05


class Hung(Exception):
    """A start neither ended nor went on in time."""


class Supervisor:
    """One run, by `ldm train` with these arguments. statuses: how each start ended. Its output goes to `log`."""

    def __init__(self, folder: Path, settings: list[str], environment: Mapping[str, str], temporary: Path) -> None:
        self.folder = folder
        self.statuses: list[int] = []
        self.log = folder.with_suffix(".log")
        temporary.mkdir(exist_ok=True)
        self._command = [sys.executable, "-m", "training.cli", "train", *settings, f"run.folder={folder}"]
        own = {"OMP_NUM_THREADS": "1", "TMPDIR": str(temporary), MARK: str(folder)}
        self._environment = {**os.environ, **environment, **own}
        self._process: subprocess.Popen[bytes] | None = None
        self._records = 0

    @property
    def lives(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def status(self) -> int | None:
        """How the last start ended; None while it lives."""
        return self._process.poll() if self._process is not None else None

    @property
    def over(self) -> bool:
        """The last start ended, and no other will be made."""
        return self.status in (FINISHED, NOT_RETRIED)

    def start(self) -> None:
        """Starts the command once more. It leads a process group, as on a terminal."""
        self._records = len(read_starts(self.folder))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=PROJECT, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def reap(self) -> None:
        """Waits for the start's end, and notes how it ended."""
        assert self._process is not None
        self.statuses.append(self._process.wait())

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Until the condition holds (True) or the start has ended (False). Raises Hung."""
        deadline = time.monotonic() + seconds
        while self.lives:
            if condition():
                return True
            if time.monotonic() > deadline:
                raise Hung(f"neither ended nor went on within {seconds:.0f} s, at step {self.step}")
            time.sleep(POLL_SECONDS)
        return False

    @property
    def step(self) -> int:
        """The last one that was made, saved or not."""
        return last_row(self.folder)[0] if self.folder.exists() else 0

    @property
    def checkpoints(self) -> list[Path]:
        """The complete ones, newest first."""
        return list(complete_checkpoints(self.folder / "checkpoints"))

    @property
    def resumed_at(self) -> int | None:
        """The step that this start went on from; None before it trains."""
        starts = read_starts(self.folder)[self._records :] if self.folder.exists() else []
        return starts[-1].step if starts and starts[-1].trained is not None else None

    @property
    def trains(self) -> bool:
        """This start has made a step."""
        if (resumed := self.resumed_at) is None:
            return False
        step, when = last_row(self.folder)
        return step > resumed and when > (read_starts(self.folder)[-1].trained or 0.0)

    @property
    def saves(self) -> bool:
        """A checkpoint is being written."""
        torn = [path for path in (self.folder / "checkpoints").glob("step-*") if not (path / MANIFEST).exists()]
        return any(path > next(iter(self.checkpoints), Path()) for path in torn)

    def family(self) -> list[psutil.Process]:
        """All processes of this start but the command itself."""
        if self._process is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).children(recursive=True)
        return []

    def ranks(self) -> list[psutil.Process]:
        """Its ranks that live."""
        return [process for process in self.family() if _parent(process) == self.pid and _is_rank(process)]

    def workers(self) -> list[psutil.Process]:
        """The processes that load data for its ranks."""
        ranks = {rank.pid for rank in self.ranks()}
        return [process for process in self.family() if _parent(process) in ranks and _is_worker(process)]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals, group: bool = False) -> None:
        """To the command, or to its process group."""
        if self.lives:
            os.killpg(self.pid, number) if group else os.kill(self.pid, number)

    def kill_all(self) -> None:
        """The command and all that it started, at once."""
        for process in [*self.family(), *marked(self.folder)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def marked(folder: Path) -> list[psutil.Process]:
    """Living processes of a run, whoever their parents are."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _parent(process: psutil.Process) -> int | None:
    with contextlib.suppress(psutil.Error):
        return process.ppid()
    return None


def _is_rank(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return RANK_MARK in process.environ()
    return False


def _is_worker(process: psutil.Process) -> bool:
    """Multiprocessing starts its resource tracker, too."""
    with contextlib.suppress(psutil.Error):
        return "resource_tracker" not in " ".join(process.cmdline())
    return False
