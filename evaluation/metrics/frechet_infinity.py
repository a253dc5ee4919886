"""The Fréchet distance that unboundedly many images would have (FID∞)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from evaluation.metrics.feature_sets import FeatureSets
from evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from evaluation.metrics.metric import Network, Ranks, Sizes, Value

SEED = 0


class FrechetInfinity(FeatureSets):
    """Extrapolation of the distance to no sampling error, which is in proportion to 1 / N; lower is better.

    The distance is computed for `points` numbers N of generated images, evenly spaced from `smallest` to all of them,
    each time of others; the line through them over 1 / N is read off at 0. All real images are used each time.

    Args:
        name: under which it may be quoted.
        network, output, sizes, most: see FeatureSets.
        points, smallest: 15 and 5,000 in the paper.

    Raises ValueError with no more generated images than `smallest`, and with fewer than two points.
    Source: Chong and Forsyth, "Effectively Unbiased FID and Inception Score and Where to Find Them", Sec. 4.
    """

    def __init__(
        self, name: str, network: Network, output: str, sizes: Sizes, most: int, points: int, smallest: int
    ) -> None:
        super().__init__(network, output, sizes, most)
        if self.kept.generated <= smallest or smallest < 2 or points < 2:
            raise ValueError(
                f"{name}: {points} points from smallest={smallest} to {self.kept.generated} generated images; "
                "it needs two points or more, and more images than smallest"
            )
        self._name, self._points, self._smallest = name, points, smallest

    def compare(self, generated: Tensor, real: Tensor, ranks: Ranks) -> dict[str, Value]:
        """The intercept. Each rank takes its share of the points."""
        counts = np.linspace(self._smallest, len(generated), self._points).round().astype(int)
        generator = torch.Generator().manual_seed(SEED)
        reference = statistics(real)
        found = torch.zeros(self._points, dtype=torch.float64)
        for point, count in enumerate(counts):
            chosen = torch.randperm(len(generated), generator=generator)[: int(count)]
            if point % ranks.world == ranks.rank:
                found[point] = frechet_distance(statistics(generated[chosen]), reference)
        found = ranks.all_reduce_sum(found)
        _, intercept = np.polyfit(1 / counts, found.numpy(), 1)
        return {self._name: Value(float(intercept))}


def statistics(features: Tensor) -> FeatureStatistics:
    """Of features float [N, D]."""
    found = FeatureStatistics(features.shape[1], features.device)
    for block in features.split(4096):
        found.update(block)
    return found
