"""Signals that ask the run to stop: finish the step, save, leave."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
STOPPED_STATUS = os.EX_TEMPFAIL
"""Exit status 75 of `ldm train`: asked to stop, saved, left before its last step. The same command goes on."""
SAME_REQUEST_SECONDS = 3.0
"""Signals this close together are one request: a terminal, a launcher and a scheduler may all pass it on."""


class StopRequest:
    """Set by SIGINT, SIGTERM or SIGUSR1; the loop looks at `received` between steps.

    A second request ends the process at once, without saving.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._time = 0.0
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is not None and now - self._time > SAME_REQUEST_SECONDS:
            os._exit(128 + number)
        if self.received is None:
            self.received = signal.Signals(number)
            self._time = now
