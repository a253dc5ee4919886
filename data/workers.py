"""Processes that load ahead."""

import atexit
import os
import signal
import sys
import tempfile
from collections.abc import Generator, Iterable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from data.errors import DataError
from data.processes import die_with

T = TypeVar("T")
_LONGEST_SOCKET = 107
_SOCKET = "/pymp-12345678/listener-12345678"
"""What multiprocessing puts into the folder of temporary files."""


def loaded(
    items: Dataset[T], batches: Iterable[list[Any]], workers: int, pin_memory: bool, batches_ahead: int
) -> Generator[tuple[T, int], None, None]:
    """What `items.__getitems__` makes of each of the batches, in their order, loaded ahead by `workers` processes; with
    how many of them were ready when it was asked for.

    An exception that it returns is raised here. Close the generator to end its workers. Raises DataError when workers
    could hand nothing over: it would be told nowhere, and waited for without end.
    """
    folder = tempfile.gettempdir()
    longest = _LONGEST_SOCKET - len(_SOCKET)
    if workers and len(os.fsencode(folder)) > longest:
        raise DataError(
            f"TMPDIR={folder} has {len(os.fsencode(folder))} bytes: with workers it may have {longest}, as they hand "
            "batches over by sockets in it. Set TMPDIR to a shorter path, or data.workers=0"
        )
    loader: DataLoader[Any] = DataLoader(
        items,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_same,
        pin_memory=pin_memory,
        prefetch_factor=batches_ahead if workers else None,
        worker_init_fn=partial(_prepare_worker, os.getpid()),
        # its own generator: DataLoader would draw from torch's global one, and change the run's noise
        generator=torch.Generator().manual_seed(0),
    )
    running = [iter(loader)]
    end = partial(_end, running)
    atexit.register(end)
    try:
        while True:
            ready = _ready(running[0])
            if (batch := next(running[0], None)) is None:
                break
            if isinstance(batch, Exception):
                raise batch
            yield batch, ready
    finally:
        atexit.unregister(end)
        end()


def _end(running: list[Any]) -> None:
    """Ends the workers of the iterator in this list, and takes it out.

    They ignore the signal that multiprocessing ends its children with at the program's end, which then waits for them
    for ever. To drop the iterator is not enough, as the traceback of an error keeps it. Those that don't end when they
    are told, because they ask a store that is down, are killed.
    """
    if not running or not isinstance(iterator := running.pop(), _MultiProcessingDataLoaderIter):
        return
    try:
        with suppress(RuntimeError):  # of a worker that was killed
            iterator._shutdown_workers()
    finally:
        for worker in iterator._workers:
            worker.kill()
            worker.join()


def _ready(running: Any) -> int:
    """Batches that wait to be taken. torch tells nobody: they lie in its queue, and where it keeps those that came
    before their turn."""
    if not isinstance(running, _MultiProcessingDataLoaderIter):
        return 0
    return running._data_queue.qsize() + sum(len(task) > 1 for task in running._task_info.values())


def _same(batch: Any) -> Any:
    return batch


def _prepare_worker(parent: int, worker: int) -> None:
    """A scheduler signals every process of a job; only the training process may decide what follows. When that is
    gone, nothing does: a worker may be asking a store that is down, for minutes."""
    die_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _tell_unless_abandoned


def _tell_unless_abandoned(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Of an error in a worker's own threads, unless the training process was killed while it took a batch over."""
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)
