"""One step of a task, and what becomes of one that went wrong."""

from __future__ import annotations

import logging

import torch

from training.agreement import WatchedBatches
from training.alerts import NON_FINITE
from training.checkpoint import Checkpoints
from training.distributed import Distributed
from training.engine import Engine, NonFiniteUpdate
from training.instruments import Instruments
from training.loss_spikes import RollBack
from training.non_finite import non_finite_step
from training.tasks import Task

log = logging.getLogger(__name__)


def make_step(
    task: Task,
    batches: WatchedBatches,
    step: int,
    learning_rate: float,
    checkpoints: Checkpoints,
    instruments: Instruments,
    ranks: Distributed,
) -> dict[str, torch.Tensor]:
    """Makes step number `step`; returns this rank's metrics, see Task.train_step. A collective.

    Raises NonFiniteStep where the loss or the gradient isn't finite, and RollBack where an update by a spike was left
    out, the run is to go back before it, and a checkpoint is there. All that was being saved is on the disk then.
    """
    updates = [engine.updates for engine in task.engines.values()]
    try:
        with instruments.meter.step():
            metrics = task.train_step(batches, step, learning_rate)
    except NonFiniteUpdate as error:
        checkpoints.finish()
        untouched = updates == [engine.updates for engine in task.engines.values()]
        failure = non_finite_step(ranks, step, error, batches, untouched)
        instruments.alerts.raise_alarm(NON_FINITE, str(failure))
        raise failure from None
    model = task.engines["model"]
    if model.left_out is not None:
        name_left_out(ranks, step, model.left_out, batches)
        if model.guard is not None and model.guard.rolls_back:
            checkpoints.finish()
            if checkpoints.newest:
                raise RollBack
    return metrics | instruments.meter.details(step + 1)


def update_metrics(model: Engine, learning_rate: float) -> dict[str, float]:
    """What a step's row says of its update."""
    row = {"train/learning_rate": learning_rate, "train/ema_decay": model.ema_decay}
    if (norm := model.gradient_norm()) is not None:
        row["train/gradient_norm"] = norm
    if model.guard is not None:
        row["train/skipped_updates"] = model.guard.left_out
    return row


def name_left_out(ranks: Distributed, step: int, reason: str, batches: WatchedBatches) -> None:
    """Tells in the log which samples an update was left out for. A collective."""
    everyone = ranks.gather_objects([number for numbers in batches.numbers for number in numbers])
    if ranks.is_main:
        samples = sorted(number for numbers in everyone for number in numbers)
        log.warning("the update of step %d is left out: %s; samples %s", step, reason, samples)
