"""What is seen of a sample's picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data.transforms import BadSample, decode_image, image_bytes
from data.view import Shape, View, chosen


@dataclass(frozen=True, slots=True)
class Seen:
    """view: of the picture. image: uint8 [H, W, 3], that view; [0, 0, 3] where only its moments are known.
    moments: what a first stage said of it, half precision [K, h, w]; else None."""

    view: View
    image: NDArray[np.uint8]
    moments: Tensor | None = None


class PictureReader(Protocol):
    """Finds the picture among a sample's members, or what stands for it."""

    def read(self, members: Mapping[str, bytes], generator: np.random.Generator, shape: Shape | None = None) -> Seen:
        """What is seen; the view is drawn from the generator, and nothing else. shape: of the view, None: the reader's
        square. Raises BadSample."""
        ...


class ImageReader:
    """Decodes pictures and cuts squares out of them, or rectangles of the shapes that are asked for.

    image_size: side of the squares in pixels. scaled_side, flip: see `data.view.chosen`. smallest_side: smaller
    pictures (in pixels) are bad samples. max_pixels: so are larger ones.
    """

    def __init__(self, image_size: int, scaled_side: int, flip: bool, smallest_side: int, max_pixels: int) -> None:
        self.image_size = image_size
        self.scaled_side = scaled_side
        self.flip = flip
        self.smallest_side = smallest_side
        self.max_pixels = max_pixels

    def read(self, members: Mapping[str, bytes], generator: np.random.Generator, shape: Shape | None = None) -> Seen:
        """The view as an image."""
        picture = decode_image(image_bytes(members), self.max_pixels)
        height, width = picture.shape[:2]
        if min(height, width) < self.smallest_side:
            raise BadSample("too_small", f"{width} x {height} is below {self.smallest_side}")
        view = chosen(height, width, self.image_size, self.scaled_side, self.flip, generator, shape)
        shape = shape or (self.image_size, self.image_size)
        return Seen(view, view.cut_to(picture, shape, Image.Resampling.LANCZOS))
