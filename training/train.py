"""`ldm train`: compose, check, build, fit. The same command on the same run goes on where it stopped.

Exit status: 0 the run reached its last step; 75 it was asked to stop, saved and left (preemption.STOPPED_STATUS);
2 a wrong setting or wrong data, or a crash loop; 74 the store or the disk failed (errors.OUTAGE_STATUS); 124 no step
was finished for too long (watchdog.HUNG_STATUS); anything else is a failure that nobody foresaw.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from training import compose
from training.errors import ConfigurationError
from training.job import Job
from training.job import run as run_job

if TYPE_CHECKING:
    from training.distributed import Distributed


def main() -> None:
    """Entry point of `ldm train` and `python -m training.train`. With replay=FILE it is training/replay.py's."""
    if any(argument.startswith("replay=") for argument in sys.argv[1:]):
        from training import replay

        replay.main()
        return
    # The errors to be told in one line are caught in the job: to name them here, --help would have to import torch.
    compose.command("train", run, (), shown_in_help=("experiment=demo",))


def run(config: DictConfig) -> None:
    """Starts the local ranks, or is one of the ranks that a launcher started."""
    from training.distributed import PATIENCE_MINUTES

    run_job(
        config, Job("training.train", check_here, make_ready, train, reached_last_step, PATIENCE_MINUTES, saved_step)
    )


def reached_last_step(config: DictConfig) -> bool:
    """True when the newest checkpoint is that of the run's last step, or beyond."""
    return saved_step(config) >= config.steps


def saved_step(config: DictConfig) -> int:
    """The step of the newest checkpoint, or 0."""
    from training.checkpoint_files import newest_readable

    newest = newest_readable(Path(config.run.folder) / "checkpoints")
    return 0 if newest is None else newest[1].step


def check(config: DictConfig, world: int) -> None:
    """Everything that can be known to be wrong without touching the data. Raises ConfigurationError."""
    import torch

    from evaluation.frozen_conditioners import load_frozen_conditioners
    from training.checkpoint_files import (
        CheckpointError,
        check_same_batch,
        check_same_optimizer,
        check_same_parameters,
        newest_readable,
    )
    from training.checks import check_settings
    from training.components import build_optimizer, component
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
            check_same_batch(manifest, config.batch.global_size, checkpoint)
            check_same_optimizer(manifest, build_optimizer(config, [torch.zeros(1)]).kinds, checkpoint)
    except CheckpointError as error:
        raise ConfigurationError("run.name", config.run.name, str(error)) from None


def check_here(config: DictConfig, world: int) -> None:
    """`check`, and what is so on this machine alone, where ranks are to run. Raises ConfigurationError."""
    from training.engine_checks import check_machine
    from training.modules import parameter_shapes
    from training.offload_checks import check_room

    check(config, world)
    check_machine(config)
    if config.engine.get("offload_folder") is not None:
        check_room(config, parameter_shapes(config), world)


def make_ready(config: DictConfig) -> None:
    """The data, and the place that checkpoints go to, before the ranks start. Raises DataError, ConfigurationError."""
    from data.errors import DataError, StoreUnavailable
    from training.dataset import make_ready as make_data_ready
    from training.upload_checks import check_upload

    try:
        make_data_ready(config)
        check_upload(config, saved_step(config))
    except StoreUnavailable as error:
        if saved_step(config):
            raise
        raise DataError(str(error)) from error  # a store that was never reached may have a wrong address


def train(config: DictConfig, ranks: Distributed) -> bool:
    """One rank: restores, trains, measures, reports."""
    from training.fit import train_and_report

    return train_and_report(config, ranks)


if __name__ == "__main__":
    main()
