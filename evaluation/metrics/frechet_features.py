"""Fréchet distance on any output of any network: sFID, CLIP-FID and what else there may be."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from evaluation.metrics.metric import Metric, Network, Pictures, Ranks, Sizes, Value


class FrechetFeatures(Metric):
    """Squared Fréchet distance of a network's output, lower is better.

    Args:
        name: under which it may be quoted.
        network: that sees the images.
        output: of the network.
        sizes: of the evaluation.

    Source: CLIP-FID: Kynkäänniemi et al., "The Role of ImageNet Classes in Fréchet Inception Distance"; sFID: Nash et
    al., "Generating Images with Sparse Representations".
    """

    def __init__(self, name: str, network: Network, output: str, sizes: Sizes) -> None:
        if output not in network.widths:
            raise ValueError(
                f"{network.description} has no output {output!r}; choose one of {', '.join(network.widths)}"
            )
        self.network: Network = network
        self._name, self._output, self._sizes = name, output, sizes
        width = network.widths[output]
        self._generated, self._real = (FeatureStatistics(width, network.device) for _ in range(2))

    def generated(self, pictures: Pictures, outputs: Mapping[str, Tensor]) -> None:
        self._generated.update(outputs[self._output])

    def real(self, numbers: Tensor, outputs: Mapping[str, Tensor]) -> None:
        self._real.update(outputs[self._output])

    @property
    def reference(self) -> tuple[Tensor, ...]:
        return self._real.state

    def reduce(self, ranks: Ranks) -> None:
        self._generated.reduce(ranks.all_reduce_sum)
        self._real.reduce(ranks.all_reduce_sum)

    def compute(self, ranks: Ranks) -> dict[str, Value]:
        """Raises ValueError unless as many images were added as the evaluation has."""
        for side, found, wanted in (
            ("generated", self._generated, self._sizes.generated),
            ("real", self._real, self._sizes.real),
        ):
            if int(found.count) != wanted:
                raise ValueError(f"{self._name}: {int(found.count)} of {wanted} {side} images were added")
        return {self._name: Value(frechet_distance(self._generated, self._real))}
