"""Drawn images in files, so that a measurement that was ended goes on with the image that it had come to."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evaluation.pictures import write_png

PER_FOLDER = 1000


class KeptImages:
    """Images by number, each a PNG file below a folder, which every rank sees.

    A file is whole or absent, whatever ends the process that writes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, number: int) -> Path:
        """Where image `number` is, or will be."""
        return self._folder / f"{number // PER_FOLDER:05d}" / f"{number:08d}.png"

    def read(self, numbers: Tensor) -> Tensor | None:
        """All images of these numbers, int64 [B]: uint8 [B, 3, H, W]. None where one isn't there, or can't be read."""
        images = []
        for number in numbers.tolist():
            try:
                with Image.open(self.path(number)) as image:
                    images.append(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))
            except (OSError, SyntaxError, ValueError):
                return None
        return torch.stack(images)

    def write(self, numbers: Tensor, images: Tensor) -> None:
        """Keeps images, uint8 [B, 3, H, W], under these numbers, int64 [B]."""
        for number, image in zip(numbers.tolist(), images, strict=True):
            write_png(self.path(number), image)

    def remove(self) -> None:
        """Removes all of them."""
        shutil.rmtree(self._folder, ignore_errors=True)
