"""One start of a run, from holding its folder to its end: refused in a crash loop, else recorded."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from training import starts
from training.crash_loop import refuse_crash_loop
from training.errors import ConfigurationError
from training.failures import cause, clear, last_word, leave
from training.starts import FAILED, START_VARIABLE, STOPPED, Start

log = logging.getLogger(__name__)
OTHERS_SECONDS = 2.0
"""For ranks that failed at about the same time to leave their errors, of which the first is the cause."""


class Attempt:
    """A start that is under way. Whoever knows how it ends says so by `ends`; an exception that leaves it does too.

    environment: what the ranks need to know of it.
    """

    def __init__(self, folder: Path, start: Start) -> None:
        self.folder = folder
        self.start = start
        self.environment = {START_VARIABLE: str(start.number)}

    def ends(self, end: str, error: str | None = None) -> None:
        """Records the end."""
        _unless_full(lambda: starts.note_end(self.folder, self.start.number, end, error and starts.one_line(error)))


@contextlib.contextmanager
def attempt(config: DictConfig, step: int, nodes: Sequence[str], ranks: int) -> Iterator[Attempt]:
    """Begins a start at `step`. For the process that holds the run folder.

    Raises ConfigurationError when the run is in a crash loop, or its folder can't be written to.
    """
    folder = Path(config.run.folder)
    job = os.environ.get("SLURM_JOB_ID")
    try:
        found = complete_record(folder)
        refuse_crash_loop(found, folder, job, settings_digest(config), step, config.run.max_failures)
        start = starts.begin(folder, job, list(nodes), ranks, settings_digest(config), step)
        clear(folder, start.number)
    except OSError as error:
        reason = f"{starts.STARTS} can't be written there ({error.strerror}); free space, or choose another folder"
        raise ConfigurationError("run.folder", folder, reason) from None
    begun = Attempt(folder, start)
    try:
        yield begun
    except KeyboardInterrupt:
        begun.ends(STOPPED)
        raise
    except BaseException as error:
        _end_by_error(begun, error)
        raise


def complete_record(folder: Path) -> list[Start]:
    """The run's starts, none of which lives: those that couldn't tell their end have got one. Raises OSError."""
    for start in starts.read_starts(folder):
        if start.end is None:
            starts.note_killed(folder, start.number, *cause(folder, start), last_word(folder, start.number))
    return starts.read_starts(folder)


def settings_digest(config: DictConfig) -> str:
    """Tells configurations apart, but for the number of failures that is borne."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    plain["run"] = {key: value for key, value in plain["run"].items() if key != "max_failures"}
    return hashlib.sha256(OmegaConf.to_yaml(OmegaConf.create(plain)).encode()).hexdigest()[:12]


@contextlib.contextmanager
def error_left(folder: Path, rank: int) -> Iterator[None]:
    """Leaves the error of a rank that no launcher of ours started where the main rank, or the next start, finds it."""
    try:
        yield
    except Exception as error:
        if number := os.environ.get(START_VARIABLE):
            text = f"{starts.one_line(_told(error))}\n\n{traceback.format_exc()}"
            _unless_full(lambda: leave(folder, int(number), rank, text))
        raise


def _end_by_error(begun: Attempt, error: BaseException) -> None:
    if START_VARIABLE in os.environ and begun.start.ranks > 1:  # this is one of the ranks
        time.sleep(OTHERS_SECONDS)
    end, told = cause(begun.folder, begun.start)
    begun.ends(*(FAILED, _told(error)) if told is None else (end, told))


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _unless_full(write: Callable[[], object]) -> None:
    """What went wrong must not be hidden by a disk on which it can't be noted."""
    try:
        write()
    except OSError as error:
        log.warning("the end of this start can't be recorded: %s", error)
