"""Measures that compare the features of all generated images with those of all real ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor

from evaluation.metrics.kept import KeptRows
from evaluation.metrics.metric import Metric, Network, Pictures, Ranks, Sizes, Value


class FeatureSets(Metric):
    """A comparison of two sets of feature vectors, which are kept.

    Args:
        network: that sees the images.
        output: of the network, which is compared.
        sizes: of the evaluation.
        most: images of either side that are kept, those of the lowest numbers; it bounds the memory.
    """

    def __init__(self, network: Network, output: str, sizes: Sizes, most: int) -> None:
        if output not in network.widths:
            raise ValueError(
                f"{network.description} has no output {output!r}; choose one of {', '.join(network.widths)}"
            )
        self.network: Network = network
        self.output = output
        self.kept = Sizes(min(sizes.generated, most), min(sizes.real, most))
        self._generated, self._real = (
            KeptRows(count, network.widths[output], device=network.device)
            for count in (self.kept.generated, self.kept.real)
        )

    def generated(self, pictures: Pictures, outputs: Mapping[str, Tensor]) -> None:
        within = pictures.numbers < self.kept.generated
        self._generated.update(pictures.numbers[within], outputs[self.output][within.to(self.network.device)])

    def real(self, numbers: Tensor, outputs: Mapping[str, Tensor]) -> None:
        within = numbers < self.kept.real
        self._real.update(numbers[within], outputs[self.output][within.to(self.network.device)])

    @property
    def reference(self) -> tuple[Tensor, ...]:
        return self._real.state

    def reduce(self, ranks: Ranks) -> None:
        self._generated.reduce(ranks)
        self._real.reduce(ranks)

    def compute(self, ranks: Ranks) -> dict[str, Value]:
        return self.compare(self._generated.rows, self._real.rows, ranks)

    @abstractmethod
    def compare(self, generated: Tensor, real: Tensor, ranks: Ranks) -> dict[str, Value]:
        """The numbers, of features float32 [N, D] and [M, D]."""
