"""What the loaders in `tests.benchmarks.decode` have in common: the transform of those that aren't ours, and the clock.

Imports nothing of the project: MosaicML's environment runs it too.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torchvision import transforms

SIDE, BATCH = 256, 32
WARM_IMAGES = 256
"""Not timed: until workers are up and as far ahead as they go."""


def transform() -> transforms.Compose:
    """A picture of PIL to uint8 [3, SIDE, SIDE], the middle, by the filter and of the type that ours gives."""
    resize = transforms.Resize(SIDE, transforms.InterpolationMode.LANCZOS)
    return transforms.Compose([resize, transforms.CenterCrop(SIDE), transforms.PILToTensor()])


def transform_to_float() -> transforms.Compose:
    """As in many training scripts: bicubic, to float32 in [0, 1]."""
    resize = transforms.Resize(SIDE, transforms.InterpolationMode.BICUBIC)
    return transforms.Compose([resize, transforms.CenterCrop(SIDE), transforms.ToTensor()])


def picture(data: bytes) -> Image.Image:
    """Decoded by PIL."""
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def rate(batches: Iterator[Any], seconds: float, workers: int = 0) -> float:
    """Images a second of batches of BATCH, for so many seconds after the first ones. Without workers, seconds are the
    process's own, of a core that others may use too."""
    clock = time.perf_counter if workers else time.process_time
    torch.set_num_threads(1)
    for _ in range(WARM_IMAGES // BATCH):
        next(batches)
    count, began = 0, clock()
    while clock() < began + seconds:
        next(batches)
        count += BATCH
    return count / (clock() - began)
