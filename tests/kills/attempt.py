"""One start of a run whose ranks are forked off a process that has imported everything: it takes a second or so."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from tests.training.ranks import PRELOADED
from tests.training.runs import train
from training.distributed import initialise

RANKS = 2


class Attempt:
    """The ranks of one start of the run in `folder`; what they say goes to the end of `log`."""

    def __init__(
        self, overrides: Sequence[str], folder: Path, steps: int, environment: Mapping[str, str], log: Path
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.began_ns = time.time_ns()
        self.processes: list[BaseProcess] = []
        self._resumed_at: int | None = None
        self._told, theirs = context.Pipe(duplex=False)
        place = {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for rank in range(RANKS):
            own = {**environment, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            arguments = (own, list(overrides), folder, steps, log, theirs)
            process = context.Process(target=rank_of_a_run, args=arguments, daemon=True)
            process.start()
            self.processes.append(process)
        theirs.close()

    @property
    def resumed_at(self) -> int | None:
        """The step that it went on from; None before that is known."""
        if self._resumed_at is None and self._told.poll():
            with contextlib.suppress(EOFError):
                self._resumed_at = self._told.recv()
        return self._resumed_at

    @property
    def ended(self) -> bool:
        """Whether a rank has ended, by itself: nobody was killed yet."""
        return any(process.exitcode is not None for process in self.processes)

    def limit_files(self, size: int) -> None:
        """From now on no file of the ranks can grow beyond so many bytes."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                assert process.pid is not None
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def kill(self, order: Sequence[int], pause: float) -> None:
        """Kills the ranks, each so many seconds after the one before."""
        for number, rank in enumerate(order):
            time.sleep(pause if number else 0.0)
            self.processes[rank].kill()
        for process in self.processes:
            process.join()

    def finish(self, seconds: float) -> None:
        """Waits until the ranks have come to the last step. Raises RuntimeError when one fails, or it takes longer."""
        deadline = time.monotonic() + seconds
        while running := [process.sentinel for process in self.processes if process.exitcode is None]:
            wait(running, timeout=max(0.0, deadline - time.monotonic()))
            if any(process.exitcode for process in self.processes) or time.monotonic() > deadline:
                self.kill(range(RANKS), 0.0)
        if statuses := [process.exitcode for process in self.processes if process.exitcode]:
            raise RuntimeError(f"the ranks that should have come to the last step ended with {statuses}")


def rank_of_a_run(
    environment: Mapping[str, str], overrides: list[str], folder: Path, steps: int, log: Path, told: Connection
) -> None:
    """What one rank does; the main one tells the step that it goes on from."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.environ.update(environment)
    torch.set_num_threads(1)
    ranks = initialise()
    train(ranks, overrides, folder, steps, told.send if ranks.is_main else lambda step: None)
