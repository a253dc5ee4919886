"""Runs functions in processes of a gloo group that live for the whole session, forked off one that has imported all."""

from __future__ import annotations

import gc
import io
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from training.distributed import Distributed, initialise

Work = Callable[..., Any]
PRELOADED = ["tests.training.runs", "training.engine"]
"""What the process imports that ranks are forked off: to import torch and DeepSpeed takes ten seconds of a core."""


class RankGroup:
    """`world` processes that share a process group, one thread each."""

    def __init__(self, world: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._ends: list[Connection] = []
        self._processes = []
        for rank in range(world):
            end, other = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world, port, other), daemon=True)
            process.start()
            other.close()
            self._ends.append(end)
            self._processes.append(process)

    def run(self, work: Work, *arguments: Any) -> Any:
        """Returns what `work(ranks, *arguments)` returned on rank 0, tensors in plain containers.

        `work` must be importable. Raises RuntimeError with the first failing rank's traceback; the group is over then,
        for its other ranks may wait for that one for ever.
        """
        for end in self._ends:
            end.send((work, arguments))
        result = None
        waiting = dict(zip(self._ends, range(len(self._ends)), strict=True))
        while waiting:
            for end in wait(list(waiting)):
                assert isinstance(end, Connection)
                rank = waiting.pop(end)
                try:
                    failure, answer = end.recv()
                except EOFError:
                    failure, answer = "its process ended", b""
                if failure:
                    self.kill()
                    raise RuntimeError(f"rank {rank}: {failure}")
                result = answer if rank == 0 else result
        assert result is not None
        return torch.load(io.BytesIO(result), weights_only=True)

    def kill(self) -> None:
        """Ends the ranks at once: what they did has been handed over."""
        for process in self._processes:
            process.kill()
            process.join()


def _serve(rank: int, world: int, port: int, end: Connection) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    ranks: Distributed = initialise()
    while True:
        work, arguments = end.recv()
        buffer = io.BytesIO()
        try:
            result = work(ranks, *arguments)
            if ranks.is_main:
                torch.save(result, buffer)
        except BaseException:
            end.send((traceback.format_exc(), b""))
            raise
        end.send(("", buffer.getvalue()))
        gc.collect()
