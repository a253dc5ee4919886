"""Structural similarity of images that are to equal given ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from evaluation.metrics.metric import Pictures, Sizes
from evaluation.metrics.per_image import PerImage, originals_of
from evaluation.metrics.psnr import check_pairs

WINDOW, SIGMA = 11, 1.5
K_1, K_2 = 0.01, 0.03


def ssim(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Structural similarity per image, averaged over channels and positions where the window fits.

    Args:
        images, reconstructions: uint8 [B, 3, H, W], or float with the same range 0 to 255; H, W >= 11.

    Returns float64 [B], 1 where the two are equal. Raises ValueError on differing or too small shapes.
    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", Eq. 13,
    Gaussian window of 11 pixels with sigma 1.5 and population (not sample) moments.
    """
    check_pairs(images, reconstructions)
    if min(images.shape[-2:]) < WINDOW:
        raise ValueError(f"images of {tuple(images.shape[-2:])} are smaller than the {WINDOW}-pixel window of SSIM")
    x, y = images.double(), reconstructions.double()
    mu_x, mu_y = _blur(x), _blur(y)
    sigma_xx = _blur(x * x) - mu_x * mu_x
    sigma_yy = _blur(y * y) - mu_y * mu_y
    sigma_xy = _blur(x * y) - mu_x * mu_y
    c_1, c_2 = (K_1 * 255) ** 2, (K_2 * 255) ** 2
    luminance = (2 * mu_x * mu_y + c_1) / (mu_x * mu_x + mu_y * mu_y + c_1)
    structure = (2 * sigma_xy + c_2) / (sigma_xx + sigma_yy + c_2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _blur(x: Tensor) -> Tensor:
    """Gaussian-weighted mean over the window, [B, C, H, W] -> [B, C, H - 10, W - 10]."""
    channels = x.shape[1]
    offset = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weight = torch.exp(-(offset**2) / (2 * SIGMA**2))
    weight = weight / weight.sum()
    rows = conv2d(x, weight.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return conv2d(rows, weight.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


class Ssim(PerImage):
    """Mean SSIM, at most 1, higher is better."""

    def __init__(self, sizes: Sizes, resamples: int) -> None:
        super().__init__("SSIM", sizes, resamples)

    def values(self, pictures: Pictures, outputs: Mapping[str, Tensor]) -> Tensor:
        return ssim(pictures.images, originals_of(pictures, "SSIM"))
