"""Runs a function in several processes of one gloo group, so that many multi-rank cases share one start."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from training.distributed import Distributed, initialise, shut_down

Work = Callable[..., Any]


def run(world: int, folder: Path, work: Work, *arguments: Any) -> Any:
    """Returns what `work(ranks, *arguments)` returned on rank 0. `work` must be importable."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    multiprocessing.spawn(_rank, (world, port, folder, work, arguments), nprocs=world)
    return torch.load(folder / "result.pt", weights_only=True)


def _rank(rank: int, world: int, port: int, folder: Path, work: Work, arguments: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    ranks: Distributed = initialise()
    try:
        result = work(ranks, *arguments)
    except BaseException:
        traceback.print_exc()
        raise
    if ranks.is_main:
        torch.save(result, folder / "result.pt")
    shut_down()
