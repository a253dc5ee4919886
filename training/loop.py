"""The training loop, for every task."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from data.batch import Batch
from training.checkpoint import Checkpoints
from training.distributed import Distributed
from training.engine import NonFiniteUpdate
from training.goodput import GoodputMeter
from training.preemption import StopRequest
from training.progress import Progress
from training.schedule import LearningRate
from training.tasks import Task
from training.tracker import Tracker
from training.watchdog import Watchdog

LOOK_SECONDS = 0.01
"""A look that took less wasn't one: monitors are asked at every step, and mostly have nothing to do."""


class Monitor(Protocol):
    """Looks at the model from time to time; must not disturb training's random numbers."""

    def look(self, step: int) -> dict[str, float]:
        """Called before the first step and after each; returns metrics to log, mostly none."""
        ...


@dataclass
class TrainState:
    """Where the run is, and what was wrong with its samples so far, by reason. All else follows from the step."""

    step: int = 0
    images_seen: int = 0
    bad_samples: Counter[str] = field(default_factory=Counter)


class NonFiniteStep(Exception):
    """Loss or gradient of a step is infinite or not a number; names the step and the samples. Nothing was updated."""


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
    tracker: Tracker,
    ranks: Distributed,
    stop: StopRequest,
    watchdog: Watchdog,
    goodput: GoodputMeter,
) -> bool:
    """Trains from `state` to `steps`; returns False when it was asked to stop before. Ends on a checkpoint.

    account: metrics of what the first n samples of the run were, `Loader.account`.
    """
    watched = WatchedBatches(batches)
    if state.step == 0:
        tracker.log(0, look(monitor, 0, watchdog))
    progress = Progress("train", steps, state.step, shown=ranks.is_main)
    while state.step < steps:
        started = time.perf_counter()
        try:
            metrics = task.train_step(watched, state.step, learning_rate.at(state.step, steps))
        except NonFiniteUpdate as error:
            checkpoints.finish()
            raise non_finite_step(ranks, state.step, error, watched) from None
        loss, row, bad, stopping = agree(ranks, metrics, watched, stop)
        checkpoints.check()
        state.step += 1
        watchdog.finished(state.step)
        state.images_seen += global_batch
        state.bad_samples += bad
        seconds = time.perf_counter() - started
        row |= {
            "images_seen": state.images_seen,
            "time": time.time(),
            "train/learning_rate": learning_rate.at(state.step - 1, steps),
            "speed/images_per_second": global_batch / seconds,
            "speed/step_seconds": seconds,
        }
        if (norm := task.engines["model"].gradient_norm()) is not None:
            row["train/gradient_norm"] = norm
        row |= account(state.images_seen)
        row |= {f"data/bad/{reason}": count for reason, count in state.bad_samples.items()}
        row |= look(monitor, state.step, watchdog)
        if stopping or state.step == steps or state.step % checkpoint_every == 0:
            extra = task.extra_state() | {"bad_samples": dict(state.bad_samples)}
            with watchdog.paused():
                row["checkpoint/stall_seconds"] = checkpoints.save(
                    task.engines, state.step, state.images_seen, extra, before_it_counts=tracker.flush
                )
        row |= goodput.row(seconds, row["data/wait_seconds"])
        tracker.log(state.step, row)
        progress.advance(loss, row)
        if stopping:
            break
    with watchdog.paused():
        checkpoints.finish()
    finished = state.step == steps
    progress.close("done" if finished else f"stopped by {stop.received.name if stop.received else 'another rank'}")
    return finished


def look(monitor: Monitor, step: int, watchdog: Watchdog) -> dict[str, float]:
    """The monitor's metrics of a step, and `eval/seconds` that it took, if it did anything."""
    started = time.perf_counter()
    with watchdog.paused():
        metrics = monitor.look(step)
    seconds = time.perf_counter() - started
    return metrics | ({"eval/seconds": seconds} if seconds > LOOK_SECONDS else {})


@dataclass
class WatchedBatches:
    """Passes batches on, and keeps account, step by step, of their samples' numbers, of the time spent waiting for them
    and of what was wrong with them."""

    batches: Iterator[Batch]
    wait_seconds: float = 0.0
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
        return batch


def non_finite_step(ranks: Distributed, step: int, error: NonFiniteUpdate, watched: WatchedBatches) -> NonFiniteStep:
    """The error that names the samples: those of the micro-batches at fault, or all of the step. A collective."""
    everyone = ranks.gather_objects(list(zip(error.losses, watched.numbers, strict=True)))
    found = [(loss, numbers) for micro_batches in everyone for loss, numbers in micro_batches]
    if error.loss_is_finite:
        what = "gradient is infinite or not a number"
    else:
        found = [(loss, numbers) for loss, numbers in found if not math.isfinite(loss)]
        what = f"loss is {found[0][0]}"
    samples = sorted(number for _, numbers in found for number in numbers)
    return NonFiniteStep(
        f"{what} in step {step}, on samples {samples}; the step was not made, and the newest checkpoint is of before. "
        "Look at these samples, or lower learning_rate.base or engine.clip_norm"
    )


def agree(
    ranks: Distributed, metrics: dict[str, torch.Tensor], watched: WatchedBatches, stop: StopRequest
) -> tuple[float, dict[str, float], Counter[str], bool]:
    """One exchange between the ranks after a step.

    Returns the mean loss, a row of metrics, the step's bad samples by reason, and whether to stop.
    """
    mine = {
        "metrics": {name: value.tolist() for name, value in metrics.items()},
        "wait": watched.wait_seconds,
        "bad": watched.bad,
        "memory": memory_gib(ranks.device),
        "stop": stop.received is not None,
    }
    watched.wait_seconds, watched.numbers, watched.bad = 0.0, [], Counter()
    everyone = ranks.gather_objects(mine)
    row = together([e["metrics"] for e in everyone])
    row["data/wait_seconds"] = max(e["wait"] for e in everyone)
    row |= {f"memory/rank{rank}_gib": e["memory"] for rank, e in enumerate(everyone)}
    bad: Counter[str] = sum((e["bad"] for e in everyone), Counter())
    return row["train/loss"], row, bad, any(e["stop"] for e in everyone)


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


def memory_gib(device: torch.device) -> float:
    """Peak memory in GiB: the GPU's allocator's, or this process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
