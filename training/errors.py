"""The error that a person can act on."""

from __future__ import annotations

import os
from typing import Any


class ConfigurationError(Exception):
    """A setting that can't work: names its key, its value and the remedy."""

    def __init__(self, key: str, value: Any, remedy: str) -> None:
        super().__init__(f"{key}={'null' if value is None else value}: {remedy}")
        self.key = key


OUTAGE_STATUS = os.EX_IOERR
"""Exit status 74 of `ldm train`: the store, or the disk of the run folder, failed. The same command may go on later."""
