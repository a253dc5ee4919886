"""Measures that are a mean over images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from evaluation.metrics.bootstrap import interval_of_mean
from evaluation.metrics.kept import KeptRows
from evaluation.metrics.metric import Metric, Pictures, Ranks, Sizes, Value


class PerImage(Metric):
    """The mean over images of a number that each image has.

    Args:
        name: under which the mean may be quoted.
        sizes: of the evaluation.
        resamples: drawn for the confidence interval; 0: none.
    """

    def __init__(self, name: str, sizes: Sizes, resamples: int) -> None:
        self._name, self._resamples = name, resamples
        self._kept = KeptRows(sizes.generated, 1, torch.float64)

    @abstractmethod
    def values(self, pictures: Pictures, outputs: Mapping[str, Tensor]) -> Tensor:
        """The number of each image, float [B]."""

    def generated(self, pictures: Pictures, outputs: Mapping[str, Tensor]) -> None:
        self._kept.update(pictures.numbers, self.values(pictures, outputs)[:, None])

    def reduce(self, ranks: Ranks) -> None:
        self._kept.reduce(ranks)

    def compute(self, ranks: Ranks) -> dict[str, Value]:
        """The mean, with the standard deviation over images."""
        values = self._kept.rows[:, 0]
        low, high = interval_of_mean(values, self._resamples) if self._resamples else (None, None)
        return {self._name: Value(float(values.mean()), float(values.std(correction=0)), low, high)}


def originals_of(pictures: Pictures, name: str) -> Tensor:
    """The real images that these are compared with, one by one. Raises ValueError where there are none."""
    if pictures.originals is None:
        raise ValueError(f"{name} compares images with their originals, and these have none; choose another measure")
    return pictures.originals
