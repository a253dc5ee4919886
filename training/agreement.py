"""What the ranks tell one another of a step: one exchange of its metrics, samples and wishes to stop."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from data.batch import Batch
from data.traffic import Traffic
from training.distributed import Distributed
from training.meter import Meter
from training.preemption import StopRequest


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
