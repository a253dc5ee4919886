"""How fast a step was, where its time went, and what it took: this rank's share of the answer, and all ranks' row."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from training.engine import Engine
from training.stopwatch import Stopwatch

FEW_RANKS = 8
"""So many have their memory in every row; of more, it is in some rows only, or there would be nothing else."""


class Meter:
    """Measures the steps of one rank.

    engines: the task's. detail_every: steps between what is told less often. ideal_seconds: what a step would take at
    the peak rate of the GPUs, None where their peak isn't known.
    """

    def __init__(
        self, engines: Mapping[str, Engine], device: torch.device, detail_every: int, ideal_seconds: float | None
    ) -> None:
        self.engines = engines
        self.device = device
        self.detail_every = detail_every
        self.ideal_seconds = ideal_seconds
        self._times = Stopwatch(device)
        self._started = 0.0

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """The task's step is made within it."""
        self._started = time.perf_counter()
        with self._times.part("step"):
            yield

    def details(self, step: int) -> dict[str, torch.Tensor]:
        """Metrics, as a task's, of the update that was step number `step`, where they are due and it was made."""
        model = self.engines["model"]
        if not self._in_detail(step) or not model.updates or model.left_out:
            return {}
        return {"update_squares": model.update_squares()}

    def share(self, wait_seconds: float) -> dict[str, Any]:
        """What this rank tells the others: seconds of its last step by part, and its peak memory in GiB.

        To be asked when the host has seen the step's loss: a GPU's parts are known by then. wait_seconds: for data.
        """
        seconds = self._times.take() | {"data": wait_seconds}
        for engine in self.engines.values():
            for name, value in engine.times.take().items():
                seconds[name] = seconds.get(name, 0.0) + value
        return {"seconds": seconds, "memory": peak_memory_gib(self.device)}

    def row(self, step: int, images: int, shares: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Metrics of the step that all ranks shared, of so many images over all of them."""
        total = time.perf_counter() - self._started
        row = {
            "speed/images_per_second": images / total,
            "speed/images_per_second_per_rank": images / total / len(shares),
            "speed/step_seconds": total,
        }
        row |= split(shares[0]["seconds"], total)
        if len(shares) > 1:
            row |= slowest([own_seconds(share["seconds"]) for share in shares])
        if self.ideal_seconds is not None:
            row["speed/mfu"] = self.ideal_seconds / total
        return row | self._memory(step, [share["memory"] for share in shares])

    def _memory(self, step: int, ranks: Sequence[Mapping[str, float]]) -> dict[str, float]:
        row = {f"memory/peak{name}_gib": max(memory[name] for memory in ranks) for name in ranks[0]}
        if len(ranks) <= FEW_RANKS or self._in_detail(step):
            row |= {f"memory/rank{rank}_gib": memory[""] for rank, memory in enumerate(ranks)}
        return row

    def _in_detail(self, step: int) -> bool:
        return step % self.detail_every == 0


def split(seconds: Mapping[str, float], total: float) -> dict[str, float]:
    """`speed/PART_seconds` of a step of `total` seconds, given a rank's seconds by part; see training.metrics."""
    if "step" not in seconds:  # a GPU that hasn't come past it
        return {}
    parts = {name: seconds.get(name, 0.0) for name in ("data", "backward", "optimizer")}
    # A GPU may still work on one micro-batch while the next one is waited for.
    parts["forward"] = max(0.0, seconds["step"] - sum(parts.values()))
    parts["other"] = max(0.0, total - sum(parts.values()))
    if "communication" in seconds:
        parts["communication"] = seconds["communication"]
    return {f"speed/{name}_seconds": value for name, value in parts.items()}


def own_seconds(seconds: Mapping[str, float]) -> float:
    """What a rank did without waiting for another one, as far as that can be told.

    Where collectives are timed, all but these. Else what comes before the first gradients: the wait for data and the
    forward pass, which under ZeRO 3 waits for other ranks too.
    """
    if "communication" in seconds:
        return seconds["step"] - seconds["communication"]
    return seconds.get("step", 0.0) - seconds.get("backward", 0.0) - seconds.get("optimizer", 0.0)


def slowest(own: Sequence[float]) -> dict[str, float]:
    """The rank with the most seconds of its own, and how many more these are than the median rank's."""
    rank = max(range(len(own)), key=own.__getitem__)
    return {"speed/slowest_rank": rank, "speed/slowest_behind_seconds": own[rank] - statistics.median_low(own)}


def peak_memory_gib(device: torch.device) -> dict[str, float]:
    """Peak memory in GiB: what tensors took of a GPU, "", and its allocator "_reserved"; or this process, ""."""
    if device.type == "cuda":
        return {
            "": torch.cuda.max_memory_allocated(device) / 2**30,
            "_reserved": torch.cuda.max_memory_reserved(device) / 2**30,
        }
    import resource

    return {"": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
