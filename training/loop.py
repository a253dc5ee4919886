"""The training loop, for every task."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from data.batch import Batch
from training.agreement import WatchedBatches, agree
from training.checkpoint import Checkpoints
from training.distributed import Distributed
from training.guarded_step import make_step, update_metrics
from training.instruments import Instruments
from training.look import Monitor, look
from training.preemption import StopRequest
from training.progress import Progress
from training.schedule import Pace
from training.tasks import Task
from training.train_state import TrainState


def fit(
    task: Task,
    batches: Iterator[Batch],
    account: Callable[[int], dict[str, float]],
    state: TrainState,
    pace: Pace,
    checkpoints: Checkpoints,
    monitor: Monitor,
    instruments: Instruments,
    ranks: Distributed,
    stop: StopRequest,
) -> bool:
    """Trains from `state` to the last step; returns False when it was asked to stop before. Ends on a checkpoint.

    Raises NonFiniteStep, LossSpikes, and RollBack where a spike sends the run back to its newest checkpoint.
    account: metrics of what the first n samples of the run were, `Loader.account`.
    """
    model, watchdog, watched = task.engines["model"], instruments.watchdog, WatchedBatches(batches)
    if state.step == 0:
        instruments.tracker.log(0, state.metrics() | look(monitor, 0, watchdog))
    progress = Progress("train", pace.steps, state.step, shown=ranks.is_main)
    stopping = False
    while state.step < pace.steps and not stopping:
        rate = pace.learning_rate(state.step)
        metrics = make_step(task, watched, state.step, rate, checkpoints, instruments, ranks)
        row, bad, stopping = agree(ranks, metrics, watched, instruments.meter, state.step + 1, pace.global_batch, stop)
        checkpoints.check()
        state.advance(pace.global_batch, bad)
        watchdog.finished(state.step)
        row |= state.metrics() | update_metrics(model, rate) | account(state.batch * pace.global_batch)
        row |= checkpoints.newest
        is_last = state.step == pace.steps
        if is_last or not stopping:  # a look can take longer than there is until the job is killed
            row |= look(monitor, state.step, watchdog)
        if stopping or is_last or state.step % pace.checkpoint_every == 0:
            kept = state.kept(task) | checkpoints.retention.measured(row)
            with watchdog.paused():
                row["checkpoint/stall_seconds"] = checkpoints.save(
                    task.engines, state.step, state.images_seen, kept, before_it_counts=instruments.tracker.flush
                )
        instruments.record(state.step, row)
        progress.advance(row)
        if model.guard is not None:
            model.guard.check()
    with watchdog.paused():
        checkpoints.finish()
    finished = state.step == pace.steps
    progress.close("done" if finished else f"stopped by {stop.received.name if stop.received else 'another rank'}")
    return finished
