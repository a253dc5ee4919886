"""The measures' speed and memory, printed beside what is required of them.

python -m tests.benchmarks.measures                  # all of it
python -m tests.benchmarks.measures frechet          # or some
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from evaluation.metrics.frechet import FeatureStatistics, frechet_distance

THREADS = 2
WIDTH = 2048
"""Features of the FID network."""


def line(what: str, measured: str, required: str) -> None:
    """Prints a figure beside what is required."""
    print(f"{what:<58}{measured:>34}   {required}", flush=True)


def timed(run: Callable[[], float]) -> tuple[float, float]:
    """The result, and the seconds that it took."""
    started = time.perf_counter()
    found = run()
    return found, time.perf_counter() - started


def statistics(count: int, seed: int) -> FeatureStatistics:
    """Of `count` correlated features whose deviations span two orders of magnitude."""
    mixing = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / WIDTH**0.5
    generator = torch.Generator().manual_seed(seed)
    found = FeatureStatistics(WIDTH)
    deviations = torch.logspace(0, -2, WIDTH, dtype=torch.float64)
    found.update(torch.randn(count, WIDTH, generator=generator, dtype=torch.float64) * deviations @ mixing)
    return found


def by_matrix_root(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """The distance as it is commonly computed, through scipy's root of a matrix."""
    from scipy.linalg import sqrtm

    difference = a.mean - b.mean
    root: Tensor = torch.from_numpy(sqrtm((a.covariance @ b.covariance).numpy()).real)
    return float(difference @ difference + a.covariance.trace() + b.covariance.trace() - 2 * root.trace())


def measure_frechet() -> None:
    """Fréchet distance of full rank, and of fewer samples than features."""
    for what, count, exact in (("full rank", 4 * WIDTH, True), ("1,000 samples", 1000, False)):
        a, b = statistics(count, 1), statistics(count, 2)
        ours, seconds = timed(lambda a=a, b=b: frechet_distance(a, b))
        theirs, their_seconds = timed(lambda a=a, b=b: by_matrix_root(a, b))
        line(f"Fréchet distance, {WIDTH} features, {what}: time", f"{seconds:.2f} s", "")
        line("  through scipy's sqrtm", f"{their_seconds:.2f} s", "")
        line("  times faster", f"{their_seconds / seconds:.1f} x", "at least 3.0 x")
        # Without full rank the root of the product isn't defined, and sqrtm answers with whatever rounding makes of it.
        line("  relative difference", f"{abs(ours / theirs - 1):.1e}", "at most 1e-06" if exact else "")


MEASURES = {"frechet": measure_frechet}


def main() -> None:
    """Prints a table: what, measured, required."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measures", nargs="*", default=list(MEASURES), choices=[*MEASURES, []])
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    for name in arguments.measures:
        MEASURES[name]()


if __name__ == "__main__":
    main()
