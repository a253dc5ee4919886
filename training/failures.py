"""What ranks leave in the run folder when they fail, failures/start-00002-rank-00001.txt: an error, or stacks.

Ranks that a cluster's launcher started have nobody to tell it to: the main rank, or the next start, reads it here.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from training.starts import FAILED, KILLED, Start, one_line

FAILURES = "failures"
LOST_A_PEER = re.compile(r"connection (was )?(closed|reset|refused|aborted)|broken pipe|peer|NCCL", re.IGNORECASE)
"""Errors of ranks that wait for one that is gone."""


def path_of(folder: Path, start: int, rank: int | None) -> Path:
    """Where a rank leaves what it has to tell; None: where one speaks for all."""
    return folder / FAILURES / f"start-{start:05d}{'' if rank is None else f'-rank-{rank:05d}'}.txt"


def leave(folder: Path, start: int, rank: int | None, text: str) -> None:
    """Writes it, whole or not at all. Raises OSError."""
    path = path_of(folder, start, rank)
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


def clear(folder: Path, start: int) -> None:
    """Removes what a start of the same number left, in a run whose record was removed. Raises OSError."""
    for path in (folder / FAILURES).glob(f"start-{start:05d}*.txt"):
        path.unlink()


def ranks_that_left(folder: Path, start: int) -> list[int]:
    """Those that left something, the first to do so first."""
    found = []
    for path in (folder / FAILURES).glob(f"start-{start:05d}-rank-*.txt"):
        with contextlib.suppress(FileNotFoundError):
            found.append((path.stat().st_mtime, int(path.stem.rpartition("-")[2])))
    return [rank for _, rank in sorted(found)]


def last_word(folder: Path, start: int) -> float:
    """When something was left last, in seconds since 1970; 0 where nothing was."""
    return max((path.stat().st_mtime for path in (folder / FAILURES).glob(f"start-{start:05d}*.txt")), default=0.0)


def cause(folder: Path, start: Start) -> tuple[str, str | None]:
    """How a start ended that could not tell itself, and its error: what one rank left for all, or the first of them.

    Where they only miss a rank that left nothing, that one was killed, or its machine died.
    """
    together = path_of(folder, start.number, None)
    if together.exists():
        return FAILED, one_line(together.read_text())
    found = ranks_that_left(folder, start.number)
    if not found:
        return KILLED, None
    error = one_line(path_of(folder, start.number, found[0]).read_text())
    silent = sorted(set(range(start.ranks)) - set(found))
    if silent and LOST_A_PEER.search(error):
        return KILLED, f"rank {silent[0]} ended without a word"
    return FAILED, error
