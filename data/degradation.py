"""What happens to a picture before one wants it larger: blur, noise, JPEG and downsampling, in random order.

Blind super-resolution trains on such pictures (Zhang et al. 2021, "BSRGAN", Sec. 3; with the moderate strengths of
LDM-BSR, LDM App. D.6.1).
"""

import io
from collections.abc import Callable, Mapping
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.float32]
"""[H, W, 3] in [0, 1]."""

JPEG_QUALITY = (80, 95)
NOISE_DEVIATION = (1 / 255, 2 / 255)
CAMERA_CHANCE, JPEG_CHANCE, HALVING_CHANCE, RESIZING_CHANCE = 0.25, 0.9, 0.25, 0.8
GAMMA = 2.2


def degraded(image: NDArray[np.uint8], size: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """A square image, uint8 [S, S, 3], as a poor small one, uint8 [size, size, 3]; size is at most S.

    All that is random comes from the generator. A quarter of the images that are to become four times smaller are
    halved first. Then come, in random order, the stages of STAGES; of the two that downsample, the one that gives the
    wanted size is the later. JPEG is the last.
    """
    x: Pixels = (image / 255).astype(np.float32)
    if len(image) == 4 * size and generator.random() < HALVING_CHANCE:
        x = resized(x, len(image) // 2, generator)
    order = list(generator.permutation(list(STAGES)))
    first, last = sorted((order.index("downsample"), order.index("resize")))
    order[first], order[last] = "downsample", "resize"
    for name in order:
        x = STAGES[name](x.clip(0, 1), size, generator)
    return _bytes(_compressed(x, generator))


def resized(x: Pixels, size: int, generator: np.random.Generator) -> Pixels:
    """[size, size, 3] by a random interpolation: bilinear, bicubic or area, without a filter against aliasing."""
    mode = ("bilinear", "bicubic", "area")[generator.integers(3)]
    tensor = F.interpolate(torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None], (size, size), mode=mode)
    return tensor[0].permute(1, 2, 0).numpy()


def _blur(x: Pixels, size: int, generator: np.random.Generator) -> Pixels:
    """By a Gaussian, in half of the cases one that is wider in some direction."""
    factor = len(x) / size
    width = 2 * int(generator.integers(2, 12)) + 3
    if generator.random() < 0.5:
        longer, shorter = (1 + factor / 4) * generator.random(2)
        return _convolved(x, _gaussian(width, longer, shorter, generator.uniform(0, np.pi)))
    deviation = (0.5 + 0.05 * factor) * generator.random()
    return _convolved(x, _gaussian(width, deviation**2, deviation**2, 0.0))


def _downsample(x: Pixels, size: int, generator: np.random.Generator) -> Pixels:
    """By a random factor, up to twice what is wanted; or every n-th pixel of a blurred image."""
    factor = max(1.0, len(x) / size)
    if generator.random() < RESIZING_CHANCE:
        return resized(x, max(1, int(len(x) / generator.uniform(1, 2 * factor))), generator)
    deviation = generator.uniform(0.1, 0.6 * factor)
    step = ceil(factor)
    return _convolved(x, _gaussian(25, deviation**2, deviation**2, 0.0))[step // 2 :: step, step // 2 :: step]


def _noise(x: Pixels, size: int, generator: np.random.Generator) -> Pixels:
    """Gaussian: for each channel, the same for all, or partly so."""
    deviation = generator.uniform(*NOISE_DEVIATION)
    common = (1.0, 0.0, generator.random())[generator.choice(3, p=(0.4, 0.4, 0.2))]
    alone, together = generator.standard_normal(x.shape), generator.standard_normal((*x.shape[:2], 1))
    mixed = np.sqrt(1 - common) * alone + np.sqrt(common) * together
    return (x + deviation * mixed).astype(np.float32)


def _camera(x: Pixels, size: int, generator: np.random.Generator) -> Pixels:
    """Shot and read noise of a sensor, in linear light; in the place of BSRGAN's model of a whole camera."""
    if generator.random() >= CAMERA_CHANCE:
        return x
    electrons = generator.uniform(500, 5000)  # that white frees
    counted = generator.poisson(x.astype(np.float64) ** GAMMA * electrons) + generator.normal(0, 3, x.shape)
    return ((counted / electrons).clip(0, 1) ** (1 / GAMMA)).astype(np.float32)


def _jpeg(x: Pixels, size: int, generator: np.random.Generator) -> Pixels:
    return _compressed(x, generator) if generator.random() < JPEG_CHANCE else x


STAGES: Mapping[str, Callable[[Pixels, int, np.random.Generator], Pixels]] = {
    "blur": _blur,
    "downsample": _downsample,
    "resize": resized,
    "noise": _noise,
    "camera": _camera,
    "jpeg": _jpeg,
}
"""By name: (image, the wanted side, generator) -> image."""


def _compressed(x: Pixels, generator: np.random.Generator) -> Pixels:
    """Written as JPEG and read again."""
    buffer = io.BytesIO()
    quality = int(generator.integers(JPEG_QUALITY[0], JPEG_QUALITY[1] + 1))
    Image.fromarray(_bytes(x)).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer, formats=("JPEG",)) as read:
        return (np.asarray(read) / 255).astype(np.float32)


def _bytes(x: Pixels) -> NDArray[np.uint8]:
    return (x.clip(0, 1) * 255).round().astype(np.uint8)


def _gaussian(width: int, longer: float, shorter: float, angle: float) -> Pixels:
    """[width, width], of these variances along and across a direction; sums to 1."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    covariance = turn @ np.diag([max(longer, 1e-3), max(shorter, 1e-3)]) @ turn.T
    offsets = np.arange(width) - width // 2
    places = np.stack(np.meshgrid(offsets, offsets), -1)  # [width, width, 2]
    kernel = np.exp(-0.5 * np.einsum("ijk,kl,ijl->ij", places, np.linalg.inv(covariance), places))
    return (kernel / kernel.sum()).astype(np.float32)


def _convolved(x: Pixels, kernel: Pixels) -> Pixels:
    """x with each pixel replaced by its neighbours' mean under the kernel, mirrored at the edges."""
    margin = len(kernel) // 2
    padded = np.pad(x, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    shape = padded.shape[:2]
    # By Fourier transforms: kernels are up to 25 pixels wide.
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * np.fft.rfft2(kernel, shape, axes=(0, 1))[:, :, None]
    whole = np.fft.irfft2(spectrum, shape, axes=(0, 1))
    return whole[2 * margin :, 2 * margin :].astype(np.float32)
