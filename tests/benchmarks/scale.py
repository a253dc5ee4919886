"""The first batch of any step of a run on LAION-400M, on one of 1,024 ranks: CPU seconds and memory of a fresh process.

    python -m tests.benchmarks.scale

The index of 41,400 shards x 10,000 samples is real; the shards' bytes are computed when they are read, so that no store
and no picture counts. Asked for: under 1 s and 1 GB a process, the same at every step.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.resident import resident

STEPS = (0, 1, 600_000)
WORLD, MICRO_BATCH, FURTHER = 1024, 8, 50


def measure(steps: list[int], rank: int, bucketed: bool) -> dict[str, float]:
    """Of this process, which must be fresh: CPU seconds for the index and for the first batch of each step.

    bucketed: batches are of one of five sizes each.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
    import torch
    from simulated import FOLDER, SimulatedStorage

    from data.buckets import Buckets
    from data.index import Index
    from data.loader import Loader
    from data.mixture import IndexedSource

    torch.set_num_threads(1)
    buckets = Buckets(8, 1, 2.0) if bucketed else None
    storage = SimulatedStorage(buckets)
    found = {"mib_before": memory_mib()}
    with seconds_in(found, "index"):
        index = Index.load(FOLDER, storage)
    for step in steps:
        with seconds_in(found, f"first {step}"):
            batch = WORLD * MICRO_BATCH
            sources = [IndexedSource(index)]
            loader = Loader(sources, storage, 0, 8, {}, batch, MICRO_BATCH, rank, WORLD, buckets=buckets)
            batches = loader.batches(step)
            first = next(batches)
        assert first.numbers[0] == step * WORLD * MICRO_BATCH + rank * MICRO_BATCH and not first.faults
        with seconds_in(found, f"further {step}"):
            for _ in range(FURTHER):
                next(batches)
        batches.close()
    return found | {"mib": memory_mib()}


@contextlib.contextmanager
def seconds_in(found: dict[str, float], name: str) -> Iterator[None]:
    """CPU seconds, since others may use this machine; nothing here waits."""
    began = time.process_time()
    yield
    found[name] = time.process_time() - began


def memory_mib() -> float:
    """Peak resident memory of this process in MiB."""
    return resident("VmHWM") / 2**20


def in_fresh_process(steps: Sequence[int], rank: int, bucketed: bool = False) -> dict[str, float]:
    """What `measure` finds in a process of its own."""
    kind = "buckets" if bucketed else "squares"
    command = [sys.executable, "-m", "tests.benchmarks.scale", kind, str(rank), *map(str, steps)]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    return json.loads(ended.stdout.splitlines()[-1])


def main() -> None:
    """Prints a line for each step."""
    if len(sys.argv) > 1:
        rank, *steps = map(int, sys.argv[2:])
        print(json.dumps(measure(steps, rank, sys.argv[1] == "buckets")))
        return
    for step, bucketed in ((step, bucketed) for bucketed in (False, True) for step in STEPS):
        found = in_fresh_process([step], WORLD - 1, bucketed)
        print(
            f"{'buckets' if bucketed else 'squares'}, "
            f"step {step:7}: index {found['index']:.2f} s, first batch {found[f'first {step}']:.2f} s, further ones "
            f"{1000 * found[f'further {step}'] / FURTHER:.1f} ms; {found['mib']:.0f} MiB, of which "
            f"{found['mib_before']:.0f} are python, torch and the simulation"
        )


if __name__ == "__main__":
    main()
