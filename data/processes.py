"""The same work on many items, over processes that end with this one."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from data.errors import DataError

T = TypeVar("T")
R = TypeVar("R")
_work: Callable[[Any], Any] | None = None


def work_through(
    work: Callable[[T], R], items: Sequence[T], processes: int, told: str, unit: str, chunk: int = 1
) -> list[R]:
    """`work` of each item, in their order, with a progress bar on stderr.

    work: must be picklable; each process gets it once. chunk: items that a process takes at a time; where there are
    fewer for each process, this one does them itself. Raises what `work` raises; DataError when a process is
    killed.
    """
    from tqdm import tqdm

    def shown(results: Any) -> list[R]:
        return list(
            tqdm(
                results,
                total=len(items),
                desc=told,
                unit=unit,
                file=sys.stderr,
                mininterval=0.5 if sys.stderr.isatty() else 10.0,  # a log file wants few lines
                disable=not items,
            )
        )

    processes = min(processes, len(items) // chunk)
    if processes < 2:
        return shown(map(work, items))
    # not forked: the parent may run threads, of a store's client for one
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _prepare_process, (os.getpid(), work))
    try:
        return shown(pool.map(_do, items, chunksize=chunk))
    except BrokenProcessPool as error:
        raise DataError(
            f"{told}: a process was killed, perhaps for want of memory. The same command goes on where it stopped; "
            "try fewer processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)  # after an interrupt: what is under way is finished, and no more


def _prepare_process(parent: int, work: Callable[[Any], Any]) -> None:
    """An interrupt is the parent's to handle, and no process outlives it."""
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # of Slurm, which gives it to all processes of a job
    die_with(parent)


def die_with(parent: int) -> None:
    """Ends this process when its parent ends, however that does and whatever this one does then.

    parent: its number, as it is asked too late where the parent is gone by now. To the kernel it is the parent's thread
    that counts: the one that starts this process has to last.
    """
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _do(item: Any) -> Any:
    assert _work is not None
    return _work(item)
