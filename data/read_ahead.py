"""Work that goes on behind what a process does."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class ReadAhead:
    """Has one thing done at a time by a thread. A copy in a forked or spawned process starts anew."""

    def __init__(self) -> None:
        self._forget_process()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._forget_process()

    def _forget_process(self) -> None:
        self._process = os.getpid()
        self._thread: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None

    @property
    def begun(self) -> bool:
        """Whether this process ever started something."""
        return self._process == os.getpid() and self._thread is not None

    def start(self, work: Callable[[], None]) -> None:
        """Has this done; call `wait` before the next one."""
        if self._process != os.getpid():
            self._forget_process()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "read ahead")
        self._running = self._thread.submit(work)

    def wait(self) -> None:
        """Until what was started is done. Raises what that raised."""
        running, self._running = self._running, None
        if running is not None and self._process == os.getpid():
            running.result()
