"""Pictures in a folder, read ahead while a network is busy with those before."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data.transforms import BadSample, decode_image
from data.view import middle
from evaluation.content import content_sha256
from evaluation.errors import EvaluationError
from evaluation.metrics.metric import Pictures, Ranks

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
AHEAD = 2
"""Batches that are decoded ahead of the one in use."""


class ImageFolder:
    """The image files below a folder.

    Args:
        folder: searched with its subfolders.
        image_size: side in pixels of the squares that are cut from the middle; None: as they are, all of one size.
        batch_size: pictures at a time.
        seed: from which their numbers are drawn, so that the first are as good as any; None: as their names follow.

    Raises EvaluationError when there are none.
    """

    def __init__(self, folder: Path, image_size: int | None, batch_size: int, seed: int | None = 0) -> None:
        self._paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not self._paths:
            raise EvaluationError(
                f"no image file ({', '.join(sorted(SUFFIXES))}) below {folder}: check the path, or give shards"
            )
        self._size, self._batch_size = image_size, batch_size
        count = len(self._paths)
        drawn = None if seed is None else torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        self._order: Sequence[int] = range(count) if drawn is None else drawn

    def __len__(self) -> int:
        return len(self._paths)

    def fingerprint(self, ranks: Ranks) -> str:
        """Of all that the files hold. A collective of the ranks, which share the reading."""
        return content_sha256([partial(_opened, path) for path in self._paths], ranks)

    def batches(self, rank: int = 0, world: int = 1) -> Iterator[Pictures]:
        """This rank's share. Raises EvaluationError for a file that can't be read or is of another size."""
        numbers = list(range(rank, len(self), world))
        with ThreadPoolExecutor(1) as pool:
            waiting: deque[Future[Pictures]] = deque()
            for first in range(0, len(numbers), self._batch_size):
                waiting.append(pool.submit(self._batch, numbers[first : first + self._batch_size]))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _batch(self, numbers: list[int]) -> Pictures:
        images = [read_picture(self._paths[self._order[number]], self._size) for number in numbers]
        for number, image in zip(numbers, images, strict=True):
            if image.shape != images[0].shape:
                path = self._paths[self._order[number]]
                raise EvaluationError(
                    f"{path} is {image.shape[1]} x {image.shape[2]} and others are {images[0].shape[1]} x "
                    f"{images[0].shape[2]}; give a size that all are cut to"
                )
        return Pictures(torch.tensor(numbers), torch.stack(images))


def _opened(path: Path) -> BinaryIO:
    return path.open("rb")


def read_picture(path: Path, size: int | None, border: int = 0) -> Tensor:
    """The picture in a file, as of `cut_picture`. border: pixels at each edge that are left out.

    Raises EvaluationError when the file can't be read.
    """
    try:
        picture = decode_image(path.read_bytes())
    except (OSError, BadSample) as error:
        raise EvaluationError(f"{path}: {error}; remove it or get it again") from error
    return cut_picture(picture[border : picture.shape[0] - border, border : picture.shape[1] - border], size)


def cut_picture(picture: NDArray[np.uint8], size: int | None) -> Tensor:
    """A picture uint8 [H, W, 3] as uint8 [3, H, W]; with a size, the square in its middle at size x size pixels."""
    if size is not None:
        view = middle(picture.shape[0], picture.shape[1], size)
        picture = view.cut(picture, size, Image.Resampling.LANCZOS)
    return torch.from_numpy(picture).permute(2, 0, 1).contiguous()
