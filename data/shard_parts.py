"""An index's shards from front to back, bad samples too: for making other shards of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.batch import Fault
from data.errors import DataError
from data.index import Index
from data.members import MemberReader
from data.offsets import Entry
from data.pictures import ImageReader, scaled
from data.transforms import IMAGE_EXTENSIONS, BadSample
from data.view import View
from data.workers import loaded


@dataclass(frozen=True, slots=True)
class Part:
    """Some neighbouring samples of one shard.

    shard: its number in the index. first: position of the first sample within it. keys: of the samples. members: all
    but pictures, by extension. views: of the pictures, None for a bad sample. images: those views, uint8 [B, 3, S, S],
    black for a bad sample. faults: what is wrong with bad samples, by their position in this part; their number is that
    in the index.
    """

    shard: int
    first: int
    keys: list[str]
    members: list[dict[str, bytes]]
    views: list[View | None]
    images: Tensor
    faults: dict[int, Fault]

    def __len__(self) -> int:
        return len(self.keys)


class ShardParts(Dataset[Part]):
    """A torch data set whose items are parts of shards: of a list of (shard, position within it) it makes a Part.

    An error that must end the run is returned, because torch would wrap a raised one in a worker's traceback.
    """

    def __init__(self, index: Index, members: MemberReader, pictures: ImageReader) -> None:
        self.index = index
        self.members = members
        self.pictures = pictures
        self.starts = [0, *accumulate(index.shard_sizes)]

    def __getitem__(self, place: tuple[int, int]) -> Part:
        return self._part([place])

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> Part | Exception:
        try:
            return self._part(places)
        except DataError as error:
            return error

    def batches(self, shards: Sequence[int], size: int, workers: int) -> Generator[Part, None, None]:
        """These shards in parts of at most `size` samples, loaded ahead. Close the generator to end its workers.

        Raises DataError when the store fails for good.
        """
        with closing(loaded(self, _Places(self.index.shard_sizes, shards, size), workers, False, 2)) as parts:
            yield from (part for part, _ in parts)

    def _part(self, places: Sequence[tuple[int, int]]) -> Part:
        numbers = [self.starts[shard] + position for shard, position in places]
        located = [self.index.sample(number) for number in numbers]
        self.members.prefetch(located)
        side = self.pictures.image_size
        images = np.zeros((len(places), side, side, 3), np.uint8)
        members, views, faults = [], [], {}
        for row, (number, (url, entry)) in enumerate(zip(numbers, located, strict=True)):
            try:
                images[row], view, others = self._read(url, entry)
            except BadSample as error:
                faults[row] = Fault(error.reason, url, entry.key, number, error.detail)
                view, others = None, {}
            views.append(view)
            members.append(others)
        return Part(
            *places[0],
            [entry.key for _, entry in located],
            members,
            views,
            torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
            faults,
        )

    def _read(self, url: str, entry: Entry) -> tuple[np.ndarray, View, dict[str, bytes]]:
        members = self.members.read(url, entry)
        # an unmirrored middle draws nothing
        (seen,) = scaled([self.pictures.read(members, np.random.default_rng(0))])
        others = {extension: data for extension, data in members.items() if extension not in IMAGE_EXTENSIONS}
        return seen.image, seen.view, others


class _Places:
    """The batch sampler: lists of places, no list of two shards."""

    def __init__(self, sizes: Sequence[int], shards: Sequence[int], size: int) -> None:
        self.sizes = sizes
        self.shards = shards
        self.size = size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for shard in self.shards:
            for first in range(0, self.sizes[shard], self.size):
                yield [(shard, n) for n in range(first, min(first + self.size, self.sizes[shard]))]
