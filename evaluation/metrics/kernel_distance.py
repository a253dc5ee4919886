"""Kernel distance of features, without assuming that they are Gaussian (KID)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from evaluation.metrics.feature_sets import FeatureSets
from evaluation.metrics.metric import Network, Ranks, Sizes, Value

# torch-fidelity's default seed; with it the subsets, and so the distance, are the same as there.
SUBSET_SEED = 2020


class KernelDistance(FeatureSets):
    """Squared maximum mean discrepancy with the kernel (x·y / D + 1)³, unbiased, averaged over subsets.

    Lower is better.

    Args:
        network, output, sizes, most: see FeatureSets.
        subsets, subset_size: how many are drawn, and of how many images of either side.

    Raises ValueError when a side has fewer images than a subset.
    Source: Bińkowski et al., "Demystifying MMD GANs", Sec. 3 and 4.
    """

    def __init__(self, network: Network, output: str, sizes: Sizes, most: int, subsets: int, subset_size: int) -> None:
        super().__init__(network, output, sizes, most)
        if min(self.kept.generated, self.kept.real) < subset_size:
            raise ValueError(
                f"{self.kept.generated} generated and {self.kept.real} real images are fewer than "
                f"subset_size={subset_size}; use more images or a smaller subset"
            )
        if subset_size < 2 or subsets < 1:
            raise ValueError(
                f"subsets={subsets} of subset_size={subset_size}: give at least one, of two images or more"
            )
        self._subsets, self._subset_size = subsets, subset_size

    def compare(self, generated: Tensor, real: Tensor, ranks: Ranks) -> dict[str, Value]:
        """The mean, with the standard deviation over subsets. Each rank takes its share of them."""
        drawn = np.random.RandomState(SUBSET_SEED)
        found = torch.zeros(self._subsets, dtype=torch.float64)
        for subset in range(self._subsets):
            x = drawn.choice(len(generated), self._subset_size, replace=False)
            y = drawn.choice(len(real), self._subset_size, replace=False)
            if subset % ranks.world == ranks.rank:
                found[subset] = discrepancy(generated[torch.from_numpy(x)], real[torch.from_numpy(y)])
        found = ranks.all_reduce_sum(found)
        return {"KID": Value(float(found.mean()), float(found.std(correction=0)))}


def discrepancy(x: Tensor, y: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of two sets of features, float [n, D] each."""
    n, width = x.shape
    x, y = x.double(), y.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / width + 1) ** 3  # [n, n]

    within = [kernel(a, a) for a in (x, y)]
    same = sum(float(k.sum() - k.diagonal().sum()) for k in within) / (n * (n - 1))
    return same - 2 * float(kernel(x, y).mean())
