"""Work of all ranks that goes on behind training, and whose failures become those of all ranks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from threading import Thread
from typing import Any

from data.errors import StoreUnavailable
from training.distributed import Distributed


class RanksFailed(Exception):
    """Work failed on some ranks; the message says on which, and why. passing: whether time may put it right."""

    def __init__(self, errors: list[str], passing: bool) -> None:
        super().__init__("; ".join(errors))
        self.passing = passing


class Behind:
    """Every rank does its part in a thread of its own; of what they return the main rank makes the end, in a thread.

    Threads end with the process, finished or not. All ranks call `advance` until it is done; then `result` is what
    `end` returned, on each of them.
    """

    def __init__(self, ranks: Distributed, part: Callable[[], Any], end: Callable[[list[Any]], Any]) -> None:
        self.result: Any = None
        self._ranks = ranks
        self._end: Callable[[list[Any]], Any] | None = end
        self._work = begin(part)

    @property
    def busy(self) -> bool:
        """Whether this rank has something to do yet before all can advance."""
        return not self._work.done()

    def wait(self) -> None:
        """Returns when this rank isn't busy."""
        wait([self._work])

    def advance(self) -> bool:
        """Whether all is done; else the end begins. A collective, while no rank is busy. Raises RanksFailed."""
        returned = together(self._ranks, self._work.result, gathered=True)
        if self._end is None:
            self.result = returned[0]
            return True
        self._work = begin(partial(self._end, returned) if self._ranks.is_main else lambda: None)
        self._end = None
        return False


def together(ranks: Distributed, work: Callable[[], Any], gathered: bool = False) -> Any:
    """What `work` returns, or with `gathered` what it returns on each rank. A collective.

    A failure on any rank is one of all: raises RanksFailed on each.
    """
    error, passing, result = None, False, None
    try:
        result = work()
    except Exception as failure:
        error = f"rank {ranks.rank}: {type(failure).__name__}: {failure}"
        passing = isinstance(failure, StoreUnavailable | OSError)
    everyone = ranks.gather_objects((error, passing, result if gathered else None))
    if errors := [error for error, _, _ in everyone if error]:
        raise RanksFailed(errors, all(passing for error, passing, _ in everyone if error))
    return [result for _, _, result in everyone] if gathered else result


def begin(work: Callable[[], Any]) -> Future[Any]:
    """Has it done in a thread, which ends with the process, finished or not."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True, name="checkpoint").start()
    return future
