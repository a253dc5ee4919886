"""The training loop, for every task."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from data.batch import Batch
from training.agreement import WatchedBatches, agree
from training.alerts import NON_FINITE
from training.checkpoint import Checkpoints
from training.distributed import Distributed
from training.engine import NonFiniteUpdate
from training.instruments import Instruments
from training.loss_spikes import RollBack
from training.non_finite import non_finite_step
from training.preemption import StopRequest
from training.progress import Progress
from training.schedule import LearningRate
from training.tasks import Task
from training.watchdog import Watchdog

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.01
"""A look that took less wasn't one: monitors are asked at every step, and mostly have nothing to do."""


class Monitor(Protocol):
    """Looks at the model from time to time; must not disturb training's random numbers."""

    def look(self, step: int) -> dict[str, float]:
        """Called before the first step and after each; returns metrics to log, mostly none."""
        ...


@dataclass
class TrainState:
    """Where the run is, and what was wrong with its samples so far, by reason. All else follows from the step.

    batches_left_out: whole steps' samples that it went past without training on them, as it went back `roll_backs`
    times to a checkpoint from before a spike.
    """

    step: int = 0
    images_seen: int = 0
    bad_samples: Counter[str] = field(default_factory=Counter)
    batches_left_out: int = 0
    roll_backs: int = 0

    @property
    def batch(self) -> int:
        """Whose samples the next step takes, those of the numbers [batch · G, (batch + 1) · G)."""
        return self.step + self.batches_left_out


def fit(
    task: Task,
    batches: Iterator[Batch],
    account: Callable[[int], dict[str, float]],
    state: TrainState,
    steps: int,
    global_batch: int,
    learning_rate: LearningRate,
    checkpoint_every: int,
    checkpoints: Checkpoints,
    monitor: Monitor,
    instruments: Instruments,
    ranks: Distributed,
    stop: StopRequest,
) -> bool:
    """Trains from `state` to `steps`; returns False when it was asked to stop before. Ends on a checkpoint.

    Raises NonFiniteStep, LossSpikes, and RollBack where a spike sends the run back to its newest checkpoint.
    account: metrics of what the first n samples of the run were, `Loader.account`.
    """
    tracker, meter, watchdog = instruments.tracker, instruments.meter, instruments.watchdog
    watched = WatchedBatches(batches)
    if state.step == 0:
        tracker.log(0, {"images_seen": 0, "time": time.time()} | look(monitor, 0, watchdog))
    progress = Progress("train", steps, state.step, shown=ranks.is_main)
    while state.step < steps:
        updates = [engine.updates for engine in task.engines.values()]
        rate = learning_rate.at(state.step, steps, global_batch)
        try:
            with meter.step():
                metrics = task.train_step(watched, state.step, rate)
        except NonFiniteUpdate as error:
            checkpoints.finish()
            untouched = updates == [engine.updates for engine in task.engines.values()]
            failure = non_finite_step(ranks, state.step, error, watched, untouched)
            instruments.alerts.raise_alarm(NON_FINITE, str(failure))
            raise failure from None
        guard, left_out = task.engines["model"].guard, task.engines["model"].left_out
        if left_out is not None:
            name_left_out(ranks, state.step, left_out, watched)
            if guard is not None and guard.rolls_back:
                checkpoints.finish()
                if checkpoints.newest:
                    raise RollBack
        metrics |= meter.details(state.step + 1)
        row, bad, stopping = agree(ranks, metrics, watched, meter, state.step + 1, global_batch, stop)
        checkpoints.check()
        state.step += 1
        watchdog.finished(state.step)
        state.images_seen += global_batch
        state.bad_samples += bad
        row |= {
            "images_seen": state.images_seen,
            "time": time.time(),
            "train/learning_rate": rate,
            "train/ema_decay": task.engines["model"].ema_decay,
        }
        if (norm := task.engines["model"].gradient_norm()) is not None:
            row["train/gradient_norm"] = norm
        if guard is not None:
            row["train/skipped_updates"] = guard.left_out
        if state.roll_backs:
            row |= {"train/roll_backs": state.roll_backs, "train/batches_left_out": state.batches_left_out}
        row |= account(state.images_seen + state.batches_left_out * global_batch) | checkpoints.newest
        row |= {f"data/bad/{reason}": count for reason, count in state.bad_samples.items()}
        is_last = state.step == steps
        if is_last or not stopping:  # a look can take longer than there is until the job is killed
            row |= look(monitor, state.step, watchdog)
        if stopping or is_last or state.step % checkpoint_every == 0:
            extra = numbers_kept(task, state) | checkpoints.retention.measured(row)
            with watchdog.paused():
                row["checkpoint/stall_seconds"] = checkpoints.save(
                    task.engines, state.step, state.images_seen, extra, before_it_counts=tracker.flush
                )
        row |= instruments.goodput.row(row["speed/step_seconds"], row["data/wait_seconds"])
        tracker.log(state.step, row)
        progress.advance(row)
        instruments.alerts.look(state.step, row)
        if guard is not None:
            guard.check()
        if stopping:
            break
    with watchdog.paused():
        checkpoints.finish()
    finished = state.step == steps
    progress.close("done" if finished else f"stopped by {stop.received.name if stop.received else 'another rank'}")
    return finished


def numbers_kept(task: Task, state: TrainState) -> dict[str, Any]:
    """What a checkpoint's manifest keeps beside the engines' tensors."""
    guard = task.engines["model"].guard
    kept: dict[str, Any] = {} if guard is None else {"loss_spikes": guard.state()}
    if state.roll_backs:
        kept |= {"batches_left_out": state.batches_left_out, "roll_backs": state.roll_backs}
    if scaling := {name: engine.loss_scaling for name, engine in task.engines.items() if engine.loss_scaling}:
        kept |= {"loss_scaling": scaling}
    return task.extra_state() | {"bad_samples": dict(state.bad_samples)} | kept


def look(monitor: Monitor, step: int, watchdog: Watchdog) -> dict[str, float]:
    """The monitor's metrics of a step, and `eval/seconds` that it took, if it did anything."""
    started = time.perf_counter()
    with watchdog.paused():
        metrics = monitor.look(step)
    seconds = time.perf_counter() - started
    return metrics | ({"eval/seconds": seconds} if seconds > LOOK_SECONDS else {})


def name_left_out(ranks: Distributed, step: int, reason: str, watched: WatchedBatches) -> None:
    """Tells in the log which samples an update was left out for. A collective."""
    everyone = ranks.gather_objects([number for numbers in watched.numbers for number in numbers])
    if ranks.is_main:
        samples = sorted(number for numbers in everyone for number in numbers)
        log.warning("the update of step %d is left out: %s; samples %s", step, reason, samples)
