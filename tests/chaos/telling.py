"""What a trial says while it goes on: lines, and below them on a terminal a live one."""

from __future__ import annotations

import sys
import time

LIVE_SECONDS = 0.2


class Teller:
    """Lines with the seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._told = 0.0
        self._on_terminal = sys.stdout.isatty()

    def line(self, text: str) -> None:
        """One that stays."""
        clear = "\r\x1b[K" if self._on_terminal else ""
        print(f"{clear}{time.monotonic() - self._began:6.0f} s  {text}", flush=True)

    def live(self, text: str) -> None:
        """One that the next takes the place of; on a terminal alone."""
        now = time.monotonic()
        if self._on_terminal and now - self._told > LIVE_SECONDS:
            self._told = now
            print(f"\r\x1b[K{now - self._began:6.0f} s  {text}", end="", flush=True)
