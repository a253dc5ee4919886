"""Rows kept for every image of an evaluation, whichever rank saw it."""

from __future__ import annotations

import torch
from torch import Tensor

from evaluation.metrics.metric import Ranks

REDUCED_ROWS = 4096
"""Rows summed over ranks at a time, so that the sum needs little memory of its own."""


class KeptRows:
    """A row for each image number 0 ... count - 1.

    Ranks fill in those of their share and sum up; so the whole is the same, in the same order, for any number of ranks.

    Args:
        count: of images over all ranks.
        width: length of a row.
        dtype: float32 for features, float64 for numbers that are averaged.
        device: where the rows are kept.
    """

    def __init__(
        self, count: int, width: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        self._rows = torch.zeros(count, width, dtype=dtype, device=device)
        self._seen = torch.zeros(count, dtype=torch.int64, device=device)

    def update(self, numbers: Tensor, rows: Tensor) -> None:
        """Adds rows, float [B, width], of the images with these numbers, int64 [B].

        Raises ValueError on other shapes, on numbers out of range and on values that are not finite.
        """
        count, width = self._rows.shape
        if rows.ndim != 2 or rows.shape[1] != width or numbers.shape != rows.shape[:1]:
            raise ValueError(f"rows {tuple(rows.shape)} and numbers {tuple(numbers.shape)} do not fit [B, {width}]")
        if bool((numbers < 0).any()) or bool((numbers >= count).any()):
            raise ValueError(f"image numbers must lie in 0..{count - 1}; got {numbers.tolist()}")
        bad = ~torch.isfinite(rows).all(dim=1)
        if bool(bad.any()):
            found = numbers[bad.to(numbers.device)].tolist()
            raise ValueError(f"what was computed of images {found} is not finite; check those images and the weights")
        numbers = numbers.to(self._rows.device)
        self._rows[numbers] = rows.to(self._rows)
        self._seen.index_add_(0, numbers, torch.ones_like(numbers))

    def reduce(self, ranks: Ranks) -> None:
        """Fills in the rows of all ranks."""
        self._seen.copy_(ranks.all_reduce_sum(self._seen))
        for block in self._rows.split(REDUCED_ROWS):
            block.copy_(ranks.all_reduce_sum(block))

    @property
    def state(self) -> tuple[Tensor, Tensor]:
        """The sums: rows [count, width], and how often each was added, int64 [count]."""
        return self._rows, self._seen

    @property
    def rows(self) -> Tensor:
        """All rows, [count, width]. Raises ValueError unless every image was added exactly once."""
        wrong = self._seen != 1
        if bool(wrong.any()):
            first = int(wrong.nonzero()[0])
            raise ValueError(
                f"{int(wrong.sum())} of {len(self._seen)} images were not added exactly once (number {first}: "
                f"{int(self._seen[first])} times)"
            )
        return self._rows
