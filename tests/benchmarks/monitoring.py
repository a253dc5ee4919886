"""What watching costs: the demo's step, and the bookkeeping of one.

    python -m tests.benchmarks.monitoring

Trains the demo's model on two ranks of one thread, on made-up pictures. Of each step all is measured, exchanged,
written to metrics.jsonl and to W&B (offline), shown, and looked at for alerts. Bookkeeping is timed by itself, over and
over with a real step's metrics, so that no rank waits for another one in it; what W&B's own process needs is added, as
it takes the ranks' cores. All of the exchange is counted, though ranks would have to agree on when to stop without
metrics too.
Beside it, in turn, blocks of steps with and without: their difference is the same by other means, and noisier.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path

import psutil
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from data.batch import Batch
from tests.benchmarks.demo import show
from tests.training.ranks import RankGroup
from tests.training.runs import composed
from training.agreement import WatchedBatches, agree
from training.alerts import Alerts
from training.build import build_task
from training.distributed import Distributed
from training.meter import Meter
from training.preemption import StopRequest
from training.progress import Progress
from training.tasks import Task
from training.tracker import Tracker

RANKS = 2
SHARE = 0.01
SETTLING, BLOCK = 3, 5


def main() -> None:
    """Prints one line a figure: what, measured, required."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=8, help=f"of {BLOCK} steps, of each kind")
    parser.add_argument("--rows", type=int, default=400, help="that bookkeeping is timed over")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        group = RankGroup(RANKS)
        try:
            found = group.run(measure, Path(folder), arguments.blocks, arguments.rows)
        finally:
            group.kill()
    show(figures(found))


def figures(found: dict[str, float]) -> list[tuple[str, str, str]]:
    """The table."""
    step = found["bare"]
    cost = found["bookkeeping"] + found["detail"] + found["wandb"]
    return [
        ("a step without monitoring", f"{1e3 * step:.1f} ms", ""),
        ("bookkeeping of a step", f"{1e3 * found['bookkeeping']:.2f} ms", ""),
        ("update ratio, its share of a step", f"{1e3 * found['detail']:.2f} ms", ""),
        ("W&B's own process, of a step", f"{1e3 * found['wandb']:.2f} ms", ""),
        ("together", f"{cost / step:.2%}", f"below {SHARE:.0%}"),
        ("  steps with beside steps without", f"{(found['watched'] - step) / step:+.2%}", ""),
    ]


class Bookkeeping:
    """All that the loop does for a step beside training."""

    def __init__(self, ranks: Distributed, task: Task, folder: Path) -> None:
        config = composed(["experiment=demo", f"run.folder={folder}"])
        folder.mkdir(parents=True, exist_ok=True)
        self.ranks = ranks
        self.task = task
        self.batch = config.batch.global_size
        self.every = config.tracker.detail_every
        self.meter = Meter(task.engines, ranks.device, sys.maxsize, 1e-3)  # details are timed by themselves
        plain = OmegaConf.to_container(config, resolve=True)
        self.tracker = Tracker(folder, ranks.is_main, plain, "test", "offline", "step", False, 0)  # type: ignore[arg-type]
        self.alerts = Alerts(instantiate(config.alerts), self.tracker, ["here"] * RANKS, ranks.is_main)
        self.progress = Progress("train", sys.maxsize, 0, ranks.is_main)
        self.stop = StopRequest()
        self.step = 0

    def of_step(self, metrics: dict[str, torch.Tensor], watched: WatchedBatches) -> None:
        """As in training.loop.fit."""
        self.step += 1
        row, _, _ = agree(self.ranks, metrics, watched, self.meter, self.step, self.batch, self.stop)
        engine = self.task.engines["model"]
        row |= {
            "images_seen": self.step * self.batch,
            "time": time.time(),
            "train/learning_rate": 1e-3,
            "train/ema_decay": engine.ema_decay,
            "train/gradient_norm": engine.gradient_norm() or 0.0,
            "data/epoch": 0.1,
        }
        self.tracker.log(self.step, row)
        self.progress.advance(row)
        self.alerts.look(self.step, row)


def measure(ranks: Distributed, folder: Path, blocks: int, rows: int) -> dict[str, float]:
    """Seconds, of the main rank: of steps without and with bookkeeping, and of bookkeeping alone."""
    with (folder / f"rank{ranks.rank}.log").open("w") as log, redirect_stderr(log):
        task = build_task(composed(["experiment=demo", f"run.folder={folder}"]), ranks)
        books = Bookkeeping(ranks, task, folder / "run")
        watched = WatchedBatches(pictures(ranks))
        seconds: dict[str, list[float]] = {"bare": [], "watched": []}
        for number in range(SETTLING):
            task.train_step(watched, number, 1e-4)
        for number in range(blocks * 2):
            kind = ("bare", "watched")[number % 2]
            for _ in range(BLOCK):
                ranks.barrier()
                started = time.perf_counter()
                with books.meter.step():
                    metrics = task.train_step(watched, SETTLING, 1e-4)
                if kind == "watched":
                    books.of_step(metrics, watched)
                else:
                    ranks.barrier()
                seconds[kind].append(time.perf_counter() - started)
        found = {kind: statistics.median(times) for kind, times in seconds.items()}
        found["bookkeeping"], found["wandb"] = bookkeeping_alone(books, metrics, rows)
        started = time.perf_counter()
        for _ in range(3):
            task.engines["model"].update_squares()
        found["detail"] = (time.perf_counter() - started) / 3 / books.every
        books.tracker.close(failed=False)
    return found


def bookkeeping_alone(books: Bookkeeping, metrics: dict[str, torch.Tensor], rows: int) -> tuple[float, float]:
    """Median seconds of one, and the processor's seconds of other processes for one."""
    times = []
    before = children_seconds()
    for _ in range(rows):
        watched = WatchedBatches(iter(()))
        with books.meter.step():
            for engine in books.task.engines.values():
                for part in ("backward", "optimizer", *["communication"] * 20):
                    with engine.times.part(part):
                        pass
        started = time.perf_counter()
        books.of_step(metrics, watched)
        times.append(time.perf_counter() - started)
    time.sleep(2.0)  # until it has done what it got
    return statistics.median(times), (children_seconds() - before) / rows


def children_seconds() -> float:
    """Processor time of this process's living children and theirs: W&B's."""
    used = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(times.user + times.system for times in used)


def pictures(ranks: Distributed) -> Iterator[Batch]:
    """Micro-batches of the demo's shapes."""
    config = composed(["experiment=demo", "run.folder=nowhere"])
    size, side = config.batch.micro_size, config.data.image_size
    generator = torch.Generator().manual_seed(ranks.rank)
    number = 0
    while True:
        images = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, generator=generator)
        tokens = torch.randint(0, 30_000, (size, config.inputs.caption.tokenizer.length), generator=generator)
        numbers = torch.arange(number, number + size)
        sources = numbers % len(config.data.train)
        yield Batch(images, {"caption": tokens}, [""] * size, numbers, sources)
        number += size


if __name__ == "__main__":
    main()
