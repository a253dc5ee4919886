"""Peak signal-to-noise ratio of images that are to equal given ones."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from evaluation.metrics.metric import Pictures, Sizes
from evaluation.metrics.per_image import PerImage, originals_of


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per image.

    Args:
        images, reconstructions: uint8 [B, 3, H, W], or float with the same range 0 to 255.

    Returns float64 [B] in decibels; infinite where the two are equal. Raises ValueError on differing shapes.
    """
    check_pairs(images, reconstructions)
    error = (images.double() - reconstructions.double()).square().mean(dim=(1, 2, 3))  # [B]
    return (255.0**2 / error).log10() * 10


def check_pairs(images: Tensor, reconstructions: Tensor) -> None:
    """Raises ValueError unless both are [B, C, H, W], of one shape."""
    if images.shape != reconstructions.shape or images.ndim != 4:
        raise ValueError(
            f"images {tuple(images.shape)} and reconstructions {tuple(reconstructions.shape)} must both be [B, C, H, W]"
        )


class Psnr(PerImage):
    """Mean PSNR in decibels, higher is better. An image that equals its original has none: that is an error."""

    def __init__(self, sizes: Sizes, resamples: int) -> None:
        super().__init__("PSNR", sizes, resamples)

    def values(self, pictures: Pictures, outputs: Mapping[str, Tensor]) -> Tensor:
        return psnr(pictures.images, originals_of(pictures, "PSNR"))
