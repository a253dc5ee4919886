"""Perceptual similarity as the first stages' table has it: all channels of VGG16 alike."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from evaluation.metrics.metric import Network, Pictures, Sizes
from evaluation.metrics.per_image import PerImage, originals_of


class Psim(PerImage):
    """Mean distance of VGG16's features without learned weights, lower is better (LDM Tab. 8).

    The sum over five layers of 1 - cosine between the two images' features, averaged over positions: the "pretrained
    network" of Zhang et al. 2018, Sec. 3. The paper doesn't spell it out.
    """

    def __init__(self, network: Network, sizes: Sizes, resamples: int) -> None:
        super().__init__("PSIM", sizes, resamples)
        self.network = network

    def values(self, pictures: Pictures, outputs: Mapping[str, Tensor]) -> Tensor:
        originals_of(pictures, "PSIM")
        return outputs["psim"]
