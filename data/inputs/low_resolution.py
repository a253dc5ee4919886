"""The image at a lower resolution, for super-resolution."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data.errors import DataError
from data.inputs import Parts
from data.transforms import BadSample, decode_image


class LowResolution:
    """The training image made smaller with a bicubic filter (LDM Sec. 4.4: 256 to 64 pixels).

    size: of the small image's side in pixels.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise DataError(f"size={size} must be at least 1 pixel")
        self.size = size

    def read(self, sample: Parts) -> Tensor:
        """uint8 [3, size, size]."""
        return self._small(sample.image)

    def nothing(self) -> Tensor:
        """uint8 [3, size, size], grey."""
        return torch.full((3, self.size, self.size), 127, dtype=torch.uint8)

    def parse(self, value: str) -> Tensor:
        """uint8 [3, size, size] of the picture at a path. Raises DataError."""
        try:
            return self._small(decode_image(Path(value).read_bytes()))
        except (OSError, BadSample) as error:
            raise DataError(f"low-resolution image {value}: {error}; give the path of a picture") from error

    def _small(self, image: NDArray[np.uint8]) -> Tensor:
        small = Image.fromarray(image).resize((self.size, self.size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()
