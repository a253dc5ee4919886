"""The image and a hole in it, for inpainting."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data.errors import DataError
from data.inputs import Parts
from data.masks import random_mask
from data.transforms import BadSample, decode_image
from data.view import middle


class MaskedImage:
    """The training image with a random mask as its fourth channel (LDM Sec. 4.5); 255 marks what is to be filled.

    size: of the image's side in pixels.
    """

    needs_image = True

    def __init__(self, size: int) -> None:
        if size < 8:
            raise DataError(f"size={size} must be at least 8 pixels")
        self.size = size

    def read(self, sample: Parts) -> Tensor:
        """uint8 [4, size, size]."""
        return _together(sample.image, random_mask(self.size, sample.generator))

    def nothing(self) -> Tensor:
        """uint8 [4, size, size]: all is to be filled."""
        black = np.zeros((self.size, self.size, 3), np.uint8)
        return _together(black, np.full((self.size, self.size), 255, np.uint8))

    def parse(self, value: tuple[str, str]) -> Tensor:
        """uint8 [4, size, size] of the paths of a picture and of its mask, white where it is to be filled."""
        try:
            image, mask = (decode_image(Path(path).read_bytes()) for path in value)
        except (OSError, ValueError, TypeError, BadSample) as error:
            raise DataError(f"masked image {value}: {error}; give the paths of a picture and of its mask") from error
        if image.shape != mask.shape:
            raise DataError(f"masked image {value}: sizes {image.shape} and {mask.shape} must be equal")
        view = middle(image.shape[0], image.shape[1], self.size)
        holes = np.where(mask[:, :, 0] > 127, 255, 0).astype(np.uint8)
        return _together(
            view.cut(image, self.size, Image.Resampling.LANCZOS), view.cut(holes, self.size, Image.Resampling.NEAREST)
        )


def _together(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.concatenate([image, mask[:, :, None]], axis=2)).permute(2, 0, 1).contiguous()
