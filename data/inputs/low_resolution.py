"""The image at a lower resolution, for super-resolution."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data.degradation import degraded
from data.errors import DataError
from data.inputs import Parts
from data.transforms import BadSample, decode_image

DEGRADATIONS = ("bicubic", "bsr")


class LowResolution:
    """The training image made smaller (LDM Sec. 4.4: 256 to 64 pixels).

    size: of the small image's side in pixels. degradation: "bicubic", by that filter alone; or "bsr", as pictures of
    unknown origin are spoilt, each in its own way (LDM-BSR, App. D.6.1).
    """

    needs_image = True

    def __init__(self, size: int, degradation: Literal["bicubic", "bsr"] = "bicubic") -> None:
        if size < 1:
            raise DataError(f"size={size} must be at least 1 pixel")
        if degradation not in DEGRADATIONS:
            raise DataError(f"degradation={degradation}: choose one of {', '.join(DEGRADATIONS)}")
        self.size = size
        self.degradation = degradation

    def read(self, sample: Parts) -> Tensor:
        """uint8 [3, size, size]. Raises DataError when the image is smaller than that."""
        if self.degradation == "bicubic":
            return self._small(sample.image)
        if len(sample.image) < self.size:
            raise DataError(f"size={self.size} of the small image is above the image's own, {len(sample.image)}")
        return torch.from_numpy(degraded(sample.image, self.size, sample.generator)).permute(2, 0, 1).contiguous()

    def nothing(self) -> Tensor:
        """uint8 [3, size, size], grey."""
        return torch.full((3, self.size, self.size), 127, dtype=torch.uint8)

    def parse(self, value: str) -> Tensor:
        """uint8 [3, size, size] of the picture at a path, made smaller by a bicubic filter alone. Raises DataError."""
        try:
            return self._small(decode_image(Path(value).read_bytes()))
        except (OSError, BadSample) as error:
            raise DataError(f"low-resolution image {value}: {error}; give the path of a picture") from error

    def _small(self, image: NDArray[np.uint8]) -> Tensor:
        small = Image.fromarray(image).resize((self.size, self.size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()
