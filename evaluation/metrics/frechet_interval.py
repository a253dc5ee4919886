"""How sure a Fréchet distance is, by drawing the generated images anew."""

from __future__ import annotations

import torch
from torch import Tensor

from evaluation.metrics.bootstrap import interval_around, resampled
from evaluation.metrics.feature_sets import FeatureSets
from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.frechet_infinity import statistics
from evaluation.metrics.metric import Network, Ranks, Sizes, Value


class FrechetInterval(FeatureSets):
    """The Fréchet distance with the 95 % interval that its generated images, drawn with replacement, give it.

    Args:
        name: under which it may be quoted.
        network, output, sizes, most: see FeatureSets.
        resamples: distances that are computed for it, 2 or more; 100 are plenty.
    """

    def __init__(self, name: str, network: Network, output: str, sizes: Sizes, most: int, resamples: int) -> None:
        super().__init__(network, output, sizes, most)
        if resamples < 2:
            raise ValueError(f"{name}: resamples={resamples} have no spread; give 2 or more")
        self._name, self._resamples = name, resamples

    def compare(self, generated: Tensor, real: Tensor, ranks: Ranks) -> dict[str, Value]:
        """The distance, the standard deviation of the resampled ones, and the interval. Ranks share the resamples."""
        reference = statistics(real)
        number = -1

        def distance(chosen: Tensor) -> float:
            nonlocal number
            number += 1
            if number % ranks.world != ranks.rank:
                return 0.0
            return frechet_distance(statistics(generated[chosen]), reference)

        found = ranks.all_reduce_sum(resampled(distance, len(generated), self._resamples))
        value = frechet_distance(statistics(generated), reference)
        low, high = interval_around(value, found)
        return {self._name: Value(value, float(torch.std(found)), max(0.0, low), high)}
