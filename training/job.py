"""A verb that runs on ranks: starts the local ones, or is one of those that a launcher started."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from omegaconf import DictConfig

from training import compose
from training.errors import OUTAGE_STATUS, ConfigurationError
from training.preemption import STOPPED_STATUS
from training.starts import FAILED, FINISHED, STOPPED

if TYPE_CHECKING:
    from training.attempt import Attempt
    from training.distributed import Distributed

HOW_IT_ENDED = {0: FINISHED, STOPPED_STATUS: STOPPED}
"""By exit status; others are failures."""
MAIN_RANK_SECONDS = 5.0
"""For the main rank to tell an error."""


@dataclass(frozen=True)
class Job:
    """What a verb does.

    module: runs one rank, `python -m module`. check: raises ConfigurationError for everything that can be known to be
    wrong without touching the data, given the number of ranks. make_ready: makes the data ready and checks it, once,
    before the ranks start. work: one rank's whole share; False when it was asked to stop before it came to the end.
    finished: whether nothing is left to do, once the ranks have ended well. patience_minutes: how long a rank may wait
    for another one. next_step: that a run goes on from, whose starts are recorded then; None for what has no steps.
    """

    module: str
    check: Callable[[DictConfig, int], None]
    make_ready: Callable[[DictConfig], None]
    work: Callable[[DictConfig, Distributed], bool]
    finished: Callable[[DictConfig], bool]
    patience_minutes: int
    next_step: Callable[[DictConfig], int] | None = None


def exit_status(error: Exception) -> int | None:
    """The exit status that an error leads to, whose message says what is wrong; None for one that nobody foresaw.

    2: a person can put it right. OUTAGE_STATUS: time may.
    """
    from data.errors import DataError, StoreUnavailable
    from evaluation.errors import EvaluationError
    from evaluation.weights import WeightsError
    from training.checkpoint_files import CheckpointError, CheckpointNotWritten
    from training.loss_spikes import LossSpikes
    from training.non_finite import NonFiniteStep

    if isinstance(error, StoreUnavailable | CheckpointNotWritten):
        return OUTAGE_STATUS
    foreseen = (
        *(ConfigurationError, DataError, EvaluationError, WeightsError, CheckpointError),
        *(NonFiniteStep, LossSpikes),
    )
    return 2 if isinstance(error, foreseen) else None


def run(config: DictConfig, job: Job) -> None:
    """Starts the local ranks, or is one of the ranks that a launcher started."""
    from training.distributed import adopt_slurm_variables, launched
    from training.launch import RANK_MARK, errors_for_launcher

    adopt_slurm_variables()
    set_up_logging(is_main=os.environ.get("RANK", "0") == "0")
    with status_kept():
        try:
            if not launched():
                raise SystemExit(_run_locally(config, job))
            with errors_for_launcher(exit_status) if RANK_MARK in os.environ else contextlib.nullcontext():
                _run_rank(config, job)
        except Exception as error:
            if (status := exit_status(error)) is None:
                raise
            compose.fail(str(error), status)


@contextlib.contextmanager
def status_kept() -> Iterator[None]:
    """Ends a process that an error drives out of its ranks' group at once, with the error's status.

    To leave the group may take forever, as peers may wait in a collective. Not to leave it keeps gloo's threads alive,
    and one that calls the interpreter while that ends aborts the process (128 + SIGABRT instead of the status).
    """
    from training.distributed import in_group

    try:
        yield
    except (Exception, SystemExit) as error:
        if not in_group():
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)


def set_up_logging(is_main: bool) -> None:
    """Our own news from the main rank alone; warnings from every rank."""
    # On a terminal over the live line of progress, which is written anew.
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""
    logging.basicConfig(level=logging.WARNING, format=f"{clear}%(message)s", stream=sys.stderr)
    for name in ("data", "training", "evaluation"):
        logging.getLogger(name).setLevel(logging.INFO if is_main else logging.WARNING)


def _run_locally(config: DictConfig, job: Job) -> int:
    """Checks everything, makes the data ready, runs the ranks. Returns the command's exit status."""
    from training import checks, launch
    from training.dataset import store_of

    ranks = checks.local_ranks(config)
    job.check(config, ranks)
    with launch.hold_run_folder(Path(config.run.folder)), _attempt(config, job, [socket.gethostname()], ranks) as begun:
        with store_of(config) as environment:
            job.make_ready(config)
            if begun is not None:
                environment = environment | begun.environment
            ending = launch.start_ranks(job.module, sys.argv[1:], ranks, environment)
        # The launcher tells success from failure only, so whether the job was stopped is read off what it left.
        status = STOPPED_STATUS if ending.status == 0 and not job.finished(config) else ending.status
        if begun is not None:
            begun.ends(HOW_IT_ENDED.get(status, FAILED), ending.error)
        return status


def _attempt(
    config: DictConfig, job: Job, nodes: Sequence[str], ranks: int
) -> contextlib.AbstractContextManager[Attempt | None]:
    """The record of this start, where the job keeps one."""
    from training.attempt import attempt

    return contextlib.nullcontext() if job.next_step is None else attempt(config, job.next_step(config), nodes, ranks)


def _run_rank(config: DictConfig, job: Job) -> None:
    """One rank of the job: joins the others and does its share."""
    from training import launch
    from training.allocator import keep_memory
    from training.attempt import error_left
    from training.distributed import initialise, shut_down

    keep_memory()
    of_launcher = launch.RANK_MARK in os.environ
    if of_launcher:
        launch.die_with_parent()
    else:
        _check_once(config, job)
    ranks = initialise(job.patience_minutes)
    if of_launcher:
        finished = job.work(config, ranks)
    else:
        with _data_of_main_rank(config, job, ranks) as begun, error_left(Path(config.run.folder), ranks.rank):
            finished = job.work(config, ranks)
            if begun is not None:
                begun.ends(FINISHED if finished else STOPPED)
    # Not after an error: leaving a group whose peers wait in a collective may take forever.
    shut_down()
    if not finished and not of_launcher:
        raise SystemExit(STOPPED_STATUS)


def _check_once(config: DictConfig, job: Job) -> None:
    """Checks on every rank, so that all of them leave, and lets the main rank tell what is wrong with a setting."""
    try:
        job.check(config, int(os.environ["WORLD_SIZE"]))
    except ConfigurationError:
        if os.environ["RANK"] == "0":
            raise
        _leave_the_word_to_main_rank()


def _leave_the_word_to_main_rank() -> NoReturn:
    """Ends this rank after the main rank has told what is wrong: a launcher that sees one rank end may end all."""
    time.sleep(MAIN_RANK_SECONDS)
    raise SystemExit(2) from None


@contextlib.contextmanager
def _data_of_main_rank(config: DictConfig, job: Job, ranks: Distributed) -> Iterator[Attempt | None]:
    """Under srun or torchrun the main rank makes the data ready, and tells the others where the store is.

    Yields the record of this start on the main rank, where the job keeps one.
    """
    from training import launch
    from training.dataset import store_of

    nodes = list(dict.fromkeys(ranks.gather_objects(socket.gethostname())))
    with contextlib.ExitStack() as stack:
        environment: dict[str, str] | None = {}
        begun: Attempt | None = None
        error: Exception | None = None
        if ranks.is_main:
            try:
                stack.enter_context(launch.hold_run_folder(Path(config.run.folder)))
                begun = stack.enter_context(_attempt(config, job, nodes, ranks.world))
                environment = {**stack.enter_context(store_of(config)), **(begun.environment if begun else {})}
                job.make_ready(config)
            except Exception as failure:
                error, environment = failure, None
        environment = ranks.broadcast_object(environment)
        if error is not None:
            raise error
        if environment is None:
            _leave_the_word_to_main_rank()
        os.environ.update(environment)
        yield begun
        ranks.barrier()
