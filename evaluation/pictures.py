"""Image tensors as PNG files and grids."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """float [B, 3, H, W] in [-1, 1] (clamped) -> uint8 of the same shape, rounded to nearest."""
    # In place on one copy: images of many megapixels come along.
    return images.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)


def through_jpeg(images: Tensor, quality: int = 95) -> Tensor:
    """What is left of uint8 [B, 3, H, W] after it was written as JPEG files and read again."""
    read = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).cpu().contiguous().numpy()).save(file, "JPEG", quality=quality)
        read.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return torch.stack(read)


def write_png(path: Path, image: Tensor, text: dict[str, str] | None = None) -> None:
    """Writes uint8 [3, H, W] as PNG, with `text` as its text chunks; the folder is made when it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value)
    # Half a picture must never be taken for a whole one: the report may read while training writes.
    part = path.with_name(path.name + ".part")
    Image.fromarray(image.permute(1, 2, 0).cpu().contiguous().numpy()).save(part, format="PNG", pnginfo=info)
    part.replace(path)


def grid(images: Tensor, columns: int | None = None, gap: int = 4) -> Tensor:
    """Images side by side on white, row by row.

    Args:
        images: uint8 [N, 3, H, W], N >= 1.
        columns: pictures a row; by default as square as possible.
        gap: pixels between pictures.

    Returns uint8 [3, rows * H + (rows - 1) * gap, columns * W + (columns - 1) * gap].
    """
    count, channels, height, width = images.shape
    if count == 0:
        raise ValueError("a grid needs at least one image")
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    sheet = images.new_full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 255)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet
