"""Series cut down to what a screen can show, and smoothed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.run_metrics import Series

FEWEST_NOISY = 30
NOISY_TURNS = 0.3
"""Share of points at which a line turns; of pure noise it is two thirds."""


@dataclass(frozen=True, eq=False)
class Thin:
    """A series, whole or in buckets of equally many points.

    steps: int64 [N], of a bucket its middle, of the first and the last the ends. means: float64 [N]. lows, highs: each
    bucket's extremes, so that a spike of a single step is never lost; None where the series is whole, and each point is
    its own bucket.
    """

    steps: np.ndarray
    means: np.ndarray
    lows: np.ndarray | None = None
    highs: np.ndarray | None = None

    @property
    def noisy(self) -> bool:
        """Goes up and down so much that its course is told by a mean over neighbours."""
        if len(self.means) < FEWEST_NOISY:
            return False
        signs = np.sign(np.diff(self.means))
        return float((signs[1:] * signs[:-1] < 0).mean()) > NOISY_TURNS


def thin(series: Series, buckets: int) -> Thin:
    """The series whole when it has at most 2 * buckets points, else in that many buckets; of finite values only."""
    series = series.finite()
    count = len(series.steps)
    if count <= 2 * buckets:
        return Thin(series.steps, series.values)
    starts = np.arange(buckets) * count // buckets
    sizes = np.diff(starts, append=count)
    middles = series.steps[starts + sizes // 2]
    middles[0], middles[-1] = series.steps[0], series.steps[-1]
    return Thin(
        middles,
        np.add.reduceat(series.values, starts) / sizes,
        np.minimum.reduceat(series.values, starts),
        np.maximum.reduceat(series.values, starts),
    )


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving average over `window` values.

    It narrows to nothing at the beginning, where curves are steep, and looks back only at the end.
    """
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    back = np.minimum(window // 2, at)
    ahead = np.minimum(back, len(values) - 1 - at)
    mean: np.ndarray = (total[at + ahead + 1] - total[at - back]) / (ahead + back + 1)
    return mean
