"""`ldm train`: compose, check, build, fit. The same command on the same run goes on where it stopped.

Exit status: 0 the run reached its last step; 75 it was asked to stop, saved and left (preemption.STOPPED_STATUS);
2 a wrong setting or wrong data; anything else is a failure.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from training import compose
from training.errors import ConfigurationError
from training.preemption import STOPPED_STATUS

if TYPE_CHECKING:
    from training.distributed import Distributed


def main() -> None:
    """Entry point of `ldm train` and `python -m training.train`."""
    # The errors to be told in one line are caught in `run`: to name them here, --help would have to import torch.
    compose.command("train", run, (), shown_in_help=("experiment=demo",))


def user_errors() -> tuple[type[Exception], ...]:
    """Errors that a person can put right: their message says what is wrong, and no traceback is needed."""
    from data.errors import DataError
    from evaluation.errors import EvaluationError
    from evaluation.weights import WeightsError
    from training.checkpoint_files import CheckpointError
    from training.loop import NonFiniteStep

    return (ConfigurationError, DataError, EvaluationError, WeightsError, CheckpointError, NonFiniteStep)


def run(config: DictConfig) -> None:
    """Starts the local ranks, or is one of the ranks that a launcher started."""
    from training.distributed import adopt_slurm_variables, launched
    from training.launch import RANK_MARK, errors_for_launcher

    adopt_slurm_variables()
    set_up_logging(is_main=os.environ.get("RANK", "0") == "0")
    try:
        if not launched():
            raise SystemExit(run_locally(config))
        with errors_for_launcher(user_errors) if RANK_MARK in os.environ else contextlib.nullcontext():
            run_rank(config)
    except user_errors() as error:
        compose.fail(str(error))


def set_up_logging(is_main: bool) -> None:
    """Our own news from the main rank alone; warnings from every rank."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("data", "training", "evaluation"):
        logging.getLogger(name).setLevel(logging.INFO if is_main else logging.WARNING)


def run_locally(config: DictConfig) -> int:
    """Checks everything, makes the data ready, runs the ranks. Returns the command's exit status."""
    from training import checks, launch
    from training.dataset import make_ready, store_of

    ranks = checks.local_ranks(config)
    check(config, ranks)
    folder = Path(config.run.folder)
    with launch.hold_run_folder(folder), store_of(config) as environment:
        make_ready(config)
        status = launch.start_ranks(config, sys.argv[1:], ranks, environment)
    # Torch's launcher tells success from failure only, so whether the run was stopped is read off its checkpoint.
    return STOPPED_STATUS if status == 0 and not reached_last_step(config) else status


def reached_last_step(config: DictConfig) -> bool:
    """True when the newest checkpoint is that of the run's last step, or beyond."""
    from training.checkpoint_files import newest_readable

    newest = newest_readable(Path(config.run.folder) / "checkpoints")
    return newest is not None and newest[1].step >= config.steps


def check(config: DictConfig, world: int) -> None:
    """Everything that can be known to be wrong without touching the data. Raises ConfigurationError."""
    from evaluation.frozen_conditioners import load_frozen_conditioners
    from training.checkpoint_files import CheckpointError, check_same_parameters, newest_readable
    from training.checks import check_settings
    from training.components import component
    from training.model_checks import check_models

    check_settings(config, world)
    shapes = check_models(config)
    if config.task.name != "autoencoder":
        component(config, "first_stage")
        load_frozen_conditioners(config)
    try:
        if newest := newest_readable(Path(config.run.folder) / "checkpoints"):
            checkpoint, manifest = newest
            check_same_parameters(manifest, shapes, checkpoint)
    except CheckpointError as error:
        raise ConfigurationError("run.name", config.run.name, str(error)) from None


def run_rank(config: DictConfig) -> None:
    """One rank of the job: joins the others, restores, trains, measures, reports."""
    from training import launch
    from training.distributed import initialise, shut_down
    from training.fit import train_and_report

    of_launcher = launch.RANK_MARK in os.environ
    if of_launcher:
        launch.die_with_parent()
    else:
        _check_once(config)
    ranks = initialise()
    with contextlib.nullcontext() if of_launcher else _data_of_main_rank(config, ranks):
        finished = train_and_report(config, ranks)
    # Not after an error: leaving a group whose peers wait in a collective may take forever.
    shut_down()
    if not finished and not of_launcher:
        raise SystemExit(STOPPED_STATUS)


def _check_once(config: DictConfig) -> None:
    """Checks on every rank, so that all of them leave, and lets the main rank tell what is wrong with a setting."""
    try:
        check(config, int(os.environ["WORLD_SIZE"]))
    except ConfigurationError:
        if os.environ["RANK"] == "0":
            raise
        raise SystemExit(2) from None


@contextlib.contextmanager
def _data_of_main_rank(config: DictConfig, ranks: Distributed):  # type: ignore[no-untyped-def]
    """Under srun or torchrun the main rank makes the data ready, and tells the others where the store is."""
    from training import launch
    from training.dataset import make_ready, store_of

    with contextlib.ExitStack() as stack:
        environment: dict[str, str] | None = {}
        error: Exception | None = None
        if ranks.is_main:
            try:
                stack.enter_context(launch.hold_run_folder(Path(config.run.folder)))
                environment = stack.enter_context(store_of(config))
                make_ready(config)
            except Exception as failure:
                error, environment = failure, None
        environment = ranks.broadcast_object(environment)
        if error is not None:
            raise error
        if environment is None:  # the main rank tells why
            raise SystemExit(2)
        os.environ.update(environment)
        yield
        ranks.barrier()


if __name__ == "__main__":
    main()
