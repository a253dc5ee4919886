"""How well images follow their captions, in the eyes of CLIP (Hessel et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from evaluation.metrics.metric import Network, Pictures, Sizes
from evaluation.metrics.per_image import PerImage


class ClipScore(PerImage):
    """Mean cosine of the embeddings of image and caption, in [-1, 1], higher is better.

    Others print it times 100, and count what is below zero as zero.
    """

    def __init__(self, network: Network, sizes: Sizes, resamples: int) -> None:
        super().__init__("CLIP score", sizes, resamples)
        self.network = network

    def values(self, pictures: Pictures, outputs: Mapping[str, Tensor]) -> Tensor:
        if not pictures.captions:
            raise ValueError("the CLIP score compares images with their captions, and these have none")
        return outputs["score"]
