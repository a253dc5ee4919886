"""The training loop, for every task."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from data.batch import Batch
from data.traffic import Traffic
from training.alerts import NON_FINITE
from training.checkpoint import Checkpoints
from training.distributed import Distributed
from training.engine import NonFiniteUpdate
from training.instruments import Instruments
from training.loss_spikes import RollBack
from training.meter import Meter
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


class NonFiniteStep(Exception):
    """Loss or gradient of a step is infinite or not a number; names the step and the samples.

    micro_batches: of each rank in turn, each with its loss and its samples' numbers. untouched: nothing was updated; of
    several engines, those that come before the one at fault may have been.
    """

    def __init__(
        self, message: str, step: int, micro_batches: list[list[tuple[float, list[int]]]], untouched: bool
    ) -> None:
        super().__init__(message)
        self.step = step
        self.micro_batches = micro_batches
        self.untouched = untouched

    def with_remedy(self, remedy: str) -> NonFiniteStep:
        """The same, with another sentence on what to do."""
        return NonFiniteStep(f"{self}. {remedy}", self.step, self.micro_batches, self.untouched)


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
        row |= look(monitor, state.step, watchdog)
        if stopping or state.step == steps or state.step % checkpoint_every == 0:
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


@dataclass
class WatchedBatches:
    """Passes batches on, and keeps account, step by step, of their samples' numbers, of the time spent waiting for
    them, of what was read for them, of the fewest that were ready when one was asked for, and of what was wrong with
    them."""

    batches: Iterator[Batch]
    wait_seconds: float = 0.0
    traffic: Traffic = field(default_factory=Traffic)
    ready: int | None = None
    numbers: list[list[int]] = field(default_factory=list)
    bad: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        batch = next(self.batches)
        self.wait_seconds += time.perf_counter() - started
        self.numbers.append(batch.numbers.tolist())
        self.bad.update(fault.reason for fault in batch.faults)
        self.traffic += batch.traffic
        self.ready = batch.ready if self.ready is None else min(self.ready, batch.ready)
        return batch

    def forget(self) -> None:
        """A step is over."""
        self.wait_seconds, self.traffic, self.ready = 0.0, Traffic(), None
        self.numbers, self.bad = [], Counter()


def non_finite_step(
    ranks: Distributed, step: int, error: NonFiniteUpdate, watched: WatchedBatches, untouched: bool
) -> NonFiniteStep:
    """The error that names the samples: those of the micro-batches at fault, or all of the step. A collective."""
    everyone = ranks.gather_objects(list(zip(error.losses, watched.numbers, strict=True)))
    found = [(loss, numbers) for micro_batches in everyone for loss, numbers in micro_batches]
    if error.loss_is_finite:
        what = "gradient is infinite or not a number"
    else:
        found = [(loss, numbers) for loss, numbers in found if not math.isfinite(loss)]
        what = f"loss is {found[0][0]}"
    samples = sorted(number for _, numbers in found for number in numbers)
    made = "the step was not made" if untouched else "only a part of the step's updates was made"
    message = (
        f"{what} in step {step}, on samples {samples}; {made}, and the newest checkpoint is of before. "
        "Look at these samples, or lower learning_rate.base or engine.clip_norm"
    )
    return NonFiniteStep(message, step, everyone, untouched)


def name_left_out(ranks: Distributed, step: int, reason: str, watched: WatchedBatches) -> None:
    """Tells in the log which samples an update was left out for. A collective."""
    everyone = ranks.gather_objects([number for numbers in watched.numbers for number in numbers])
    if ranks.is_main:
        samples = sorted(number for numbers in everyone for number in numbers)
        log.warning("the update of step %d is left out: %s; samples %s", step, reason, samples)


def agree(
    ranks: Distributed,
    metrics: dict[str, torch.Tensor],
    watched: WatchedBatches,
    meter: Meter,
    step: int,
    global_batch: int,
    stop: StopRequest,
) -> tuple[dict[str, float], Counter[str], bool]:
    """One exchange between the ranks after a step, that is `step` now.

    Returns a row of metrics, the step's bad samples by reason, and whether to stop.
    """
    mine = {
        "metrics": on_host(metrics),  # waits for the GPU, if anything does
        "wait": watched.wait_seconds,
        "read": (watched.traffic.bytes_read, watched.traffic.retries, watched.ready or 0),
        "bad": watched.bad,
        "stop": stop.received is not None,
        **meter.share(watched.wait_seconds),
    }
    watched.forget()
    everyone = ranks.gather_values(mine)
    row = together([e["metrics"] for e in everyone])
    if (squares := row.pop("train/update_squares", None)) is not None:
        row["train/update_ratio"] = math.sqrt(squares)
    row |= meter.row(step, global_batch, everyone)
    wait = max(e["wait"] for e in everyone)
    bytes_read, retries, ready = zip(*(e["read"] for e in everyone), strict=True)
    row |= {
        "data/wait_seconds": wait,
        "data/wait_fraction": wait / row["speed/step_seconds"],
        "data/bytes_per_second": sum(bytes_read) / row["speed/step_seconds"],
        "data/retries": sum(retries),
        "data/queue_depth": min(ready),
    }
    bad: Counter[str] = sum((Counter(e["bad"]) for e in everyone), Counter())
    return row, bad, any(e["stop"] for e in everyone)


def on_host(metrics: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The tensors as numbers and lists, by one transfer: each one costs a GPU's host a wait."""
    flat = torch.cat([value.detach().float().reshape(-1) for value in metrics.values()]).cpu()
    parts = flat.split([value.numel() for value in metrics.values()])
    return {name: part.view(value.shape).tolist() for (name, value), part in zip(metrics.items(), parts, strict=True)}


def together(ranks_metrics: list[dict[str, Any]]) -> dict[str, float]:
    """Means over all ranks, by name: of a scalar, and of a sum and number [2], "train/NAME"; of [K, 2] sums and numbers
    "train/NAME_0" to K - 1.

    A group without samples has no mean, and is left out.
    """
    row = {}
    for name, value in ranks_metrics[0].items():
        everyone = [metrics[name] for metrics in ranks_metrics]
        if not isinstance(value, list):
            row[f"train/{name}"] = sum(everyone) / len(everyone)
            continue
        alone = not isinstance(value[0], list)
        groups = (
            {f"train/{name}": everyone}
            if alone
            else {f"train/{name}_{group}": parts for group, parts in enumerate(zip(*everyone, strict=True))}
        )
        for key, parts in groups.items():
            total, count = (sum(column) for column in zip(*parts, strict=True))
            if count:
                row[key] = total / count
    return row
