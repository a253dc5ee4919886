"""Sizes of nearly as many pixels at several aspect ratios, and which of them a picture is cut to (NovelAI 2022;
SDXL, Podell et al. 2023, App. I)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError

Size = tuple[int, int]
"""Width and height in pixels."""
LARGEST_NUMBER = 255
_LARGEST_SIDE, _LARGEST_KNOWN = 1 << 15, 1 << 16  # so that products of squares stay whole numbers of 64 bits


class Buckets:
    """The square of image_size, and all sizes with sides that are multiples of `step`, with at most its pixels, whose
    aspect lies within 1 / largest_aspect to largest_aspect, and of which neither side could be a step longer.

    sizes: width and height in pixels of each, from the tallest to the widest. Raises DataError where `step` doesn't
    divide image_size, where there is nothing but the square, or more than 255 sizes.
    """

    def __init__(self, image_size: int, step: int, largest_aspect: float) -> None:
        if step < 1 or image_size % step:
            raise DataError(f"step={step} must divide image_size={image_size}")
        if not 1 < largest_aspect <= _LARGEST_SIDE / image_size:
            raise DataError(f"largest_aspect={largest_aspect} must be above 1, and sides at most {_LARGEST_SIDE}")
        pixels, found = image_size**2, []
        for width in range(step, int(image_size * largest_aspect) + 1, step):
            height = pixels // (width * step) * step
            longest = height > 0 and pixels // (height * step) * step == width
            if longest and width <= largest_aspect * height and height <= largest_aspect * width:
                found.append((width, height))
        if not 1 < len(found) <= LARGEST_NUMBER:
            raise DataError(
                f"step={step}, largest_aspect={largest_aspect} make {len(found)} sizes of the pixels of "
                f"{image_size} x {image_size}; 2 to {LARGEST_NUMBER} are of use: choose another step or aspect"
            )
        self.sizes: tuple[Size, ...] = tuple(found)

    def numbers(self, sizes: Sequence[Size | None]) -> NDArray[np.uint8]:
        """The number of the size that each picture is cut to: that of the nearest aspect, by ratio. uint8 [N].

        sizes: width and height of pictures; None where they aren't known, which gives the square.
        """
        known = np.array([size or (1, 1) for size in sizes], dtype=np.int64).reshape(-1, 2)
        width, height = np.minimum(known, _LARGEST_KNOWN - 1).T ** 2
        found = np.zeros(len(known), dtype=np.uint8)
        for (w_0, h_0), (w_1, h_1) in pairwise(self.sizes):
            # beyond the geometric mean of two neighbours' aspects, in whole numbers: the same on every machine
            found += width * (h_0 * h_1) > height * (w_0 * w_1)
        return found
