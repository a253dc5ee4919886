"""The class of every pixel, for semantic synthesis."""

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data.errors import DataError
from data.inputs import Parts
from data.transforms import BadSample
from data.view import View, middle

EXTENSION = "seg.png"


class Segmentation:
    """The map in a sample's .seg.png member, an 8-bit picture of class numbers, cut like the image (LDM Sec. 4.4).

    size: side of the maps in pixels. nothing_class: the number of pixels that have no class (255 in COCO-Stuff).
    """

    needs_image = False

    def __init__(self, size: int, nothing_class: int = 255) -> None:
        if not 0 <= nothing_class <= 255:
            raise DataError(f"nothing_class={nothing_class} must lie in 0 to 255")
        self.size = size
        self.nothing_class = nothing_class

    def read(self, sample: Parts) -> Tensor:
        """uint8 [size, size]. Raises BadSample "no_segmentation", or "undecodable" when it has another shape."""
        if EXTENSION not in sample.members:
            raise BadSample("no_segmentation", f"has {', '.join(sorted(sample.members))}")
        classes = decoded_map(sample.members[EXTENSION])
        if classes.shape != (sample.view.height, sample.view.width):
            raise BadSample("undecodable", f"the map has {classes.shape}, the picture another size")
        return self._cut(classes, sample.view)

    def nothing(self) -> Tensor:
        """uint8 [size, size] without classes."""
        return torch.full((self.size, self.size), self.nothing_class, dtype=torch.uint8)

    def parse(self, value: str) -> Tensor:
        """uint8 [size, size] of the picture of class numbers at a path. Raises DataError."""
        try:
            classes = decoded_map(Path(value).read_bytes())
        except (OSError, BadSample) as error:
            raise DataError(f"segmentation {value}: {error}; give the path of an 8-bit PNG of class numbers") from error
        return self._cut(classes, middle(classes.shape[0], classes.shape[1], self.size))

    def _cut(self, classes: NDArray[np.uint8], view: View) -> Tensor:
        return torch.from_numpy(view.cut(classes, self.size, Image.Resampling.NEAREST))


def decoded_map(data: bytes) -> NDArray[np.uint8]:
    """A map as uint8 [H, W]. Raises BadSample "undecodable"."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            if picture.mode not in ("L", "P"):
                raise BadSample("undecodable", f"a map of mode {picture.mode}; class numbers are of mode L or P")
            return np.array(picture, dtype=np.uint8)
    except BadSample:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files
        raise BadSample("undecodable", f"{type(error).__name__}: {error}") from error
