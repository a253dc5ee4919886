"""Commands whose output nobody reads to its end. A leaf: imports nothing else of this project."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator

CLOSED_PIPE_STATUS = 141  # 128 + SIGPIPE, as shells have it


@contextlib.contextmanager
def quiet_when_nobody_reads() -> Iterator[None]:
    """Ends the process without a word when it prints and its reader is gone, as with `ldm train --help | head`."""
    try:
        yield
    except BrokenPipeError:
        if not _nobody_reads():  # another pipe or connection
            raise
        raise SystemExit(CLOSED_PIPE_STATUS) from None
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # the interpreter would try again at its end, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _nobody_reads() -> bool:
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in output.poll(0))
