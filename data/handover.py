"""Images from workers to the training process, by memory that they share."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import get_worker_info


class Slots:
    """A worker's side: memory for so many batches, written to again and again.

    torch takes new memory for each batch, which the kernel clears page by page, and maps it twice: for small pictures
    that is a tenth of all the work. A worker begins a batch only when the one that is as many of its own before it as
    it works ahead was taken (data.workers), so with one slot more nothing is overwritten that wasn't copied.
    """

    def __init__(self, slots: int) -> None:
        self._slots: list[Tensor | None] = [None] * slots
        self._next = 0

    def stack(self, images: Sequence[Tensor]) -> Tensor:
        """Images uint8 [H, W, 3] as [N, H, W, 3]: shared by a worker, in memory of its own in any other process."""
        if get_worker_info() is None:
            return torch.stack(list(images))
        return torch.stack(list(images), out=self._take([len(images), *images[0].shape]))

    def _take(self, shape: Sequence[int]) -> Tensor:
        size, slot = math.prod(shape), self._slots[self._next]
        if slot is None or len(slot) < size:
            slot = self._slots[self._next] = torch.empty(size, dtype=torch.uint8).share_memory_()
        self._next = (self._next + 1) % len(self._slots)
        return slot[:size].view(*shape)


class Receiver:
    """The training process's side. slots: of all workers."""

    def __init__(self, slots: int) -> None:
        self._mapped: deque[Tensor] = deque(maxlen=slots)

    def own(self, images: Tensor) -> Tensor:
        """Images that stay what they are: a copy of shared ones, to be taken before the next batch is asked for."""
        if not images.is_shared():
            return images
        self._mapped.append(images)  # or it would be mapped anew when it comes again
        return images.clone()
