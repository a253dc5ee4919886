"""Perceptual distances to the images that generated ones are to equal, as a VGG16 sees them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from evaluation.metrics.metric import Network, Pictures, Sizes
from evaluation.metrics.per_image import PerImage, originals_of


class Lpips(PerImage):
    """Mean LPIPS with the VGG16 trunk, lower is better (Zhang et al. 2018, Eq. 1)."""

    def __init__(self, network: Network, sizes: Sizes, resamples: int) -> None:
        super().__init__("LPIPS", sizes, resamples)
        self.network = network

    def values(self, pictures: Pictures, outputs: Mapping[str, Tensor]) -> Tensor:
        originals_of(pictures, "LPIPS")
        return outputs["lpips"]
