"""How many generated images are realistic, and how much of the real ones they cover."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from evaluation.metrics.bootstrap import interval_of_mean
from evaluation.metrics.feature_sets import FeatureSets
from evaluation.metrics.metric import Network, Ranks, Sizes, Value

ROWS, COLUMNS = 1024, 8192
"""Distances that are in memory at a time. Blocks don't depend on ranks, so neither does what rounding makes of them."""


class PrecisionRecall(FeatureSets):
    """Share of generated images within the real ones' manifold, and of real ones within the generated ones'.

    A set's manifold is the union of spheres about its images, each reaching to the k-th nearest of the others. Besides
    the features, memory is bounded by two blocks of distances; ranks share the blocks.

    Args:
        network, output, sizes, most: see FeatureSets.
        neighbours: k, 3 in the paper.
        resamples: drawn for the confidence intervals, the manifolds being given; 0: none.

    Raises ValueError when a side has no more images than neighbours.
    Source: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", Eq. 1 and 2.
    """

    def __init__(self, network: Network, output: str, sizes: Sizes, most: int, neighbours: int, resamples: int) -> None:
        super().__init__(network, output, sizes, most)
        if neighbours < 1 or min(self.kept.generated, self.kept.real) <= neighbours:
            raise ValueError(
                f"neighbours={neighbours}: {self.kept.generated} generated and {self.kept.real} real images must be "
                "more than that, and that at least 1"
            )
        self._neighbours, self._resamples = neighbours, resamples

    def compare(self, generated: Tensor, real: Tensor, ranks: Ranks) -> dict[str, Value]:
        found = {}
        for name, judged, manifold in (("Precision", generated, real), ("Recall", real, generated)):
            within = inside(judged, manifold, radii(manifold, self._neighbours, ranks), ranks)  # [N]
            low, high = interval_of_mean(within, self._resamples) if self._resamples else (None, None)
            found[name] = Value(float(within.mean()), None, low, high)
        return found


def radii(features: Tensor, neighbours: int, ranks: Ranks) -> Tensor:
    """Squared distance of each feature vector to its k-th nearest other, float32 [N], of features float32 [N, D]."""
    found = features.new_zeros(len(features))
    for rows in _blocks(len(features), ranks):
        nearest = features.new_full((rows.stop - rows.start, neighbours + 1), torch.inf)
        for columns in _columns(len(features)):
            distances = _squared_distances(features, rows, features, columns)
            nearest = torch.cat([nearest, distances], dim=1).topk(neighbours + 1, dim=1, largest=False).values
        found[rows] = nearest[:, -1]  # itself is the nearest
    return ranks.all_reduce_sum(found)


def inside(features: Tensor, manifold: Tensor, reach: Tensor, ranks: Ranks) -> Tensor:
    """1 for each feature vector [N, D] that lies in a sphere about one of the manifold's [M, D], else 0: float64 [N].

    reach: squared radii of the spheres, [M].
    """
    found = torch.zeros(len(features), dtype=torch.float64, device=features.device)
    for rows in _blocks(len(features), ranks):
        within = torch.zeros(rows.stop - rows.start, dtype=torch.bool, device=features.device)
        for columns in _columns(len(manifold)):
            within |= (_squared_distances(features, rows, manifold, columns) <= reach[columns]).any(dim=1)
        found[rows] = within.double()
    return ranks.all_reduce_sum(found)


def _blocks(count: int, ranks: Ranks) -> Iterator[slice]:
    """This rank's blocks of rows."""
    for first in range(ranks.rank * ROWS, count, ranks.world * ROWS):
        yield slice(first, min(first + ROWS, count))


def _columns(count: int) -> Iterator[slice]:
    for first in range(0, count, COLUMNS):
        yield slice(first, min(first + COLUMNS, count))


def _squared_distances(a: Tensor, rows: slice, b: Tensor, columns: slice) -> Tensor:
    """|a_i - b_j|², float32 [rows, columns]; the origin is put near, or the squares would cancel to rounding error."""
    origin = b[:1]
    x, y = a[rows] - origin, b[columns] - origin
    squares = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
    return torch.addmm(squares, x, y.T, alpha=-2).clamp_(min=0)
