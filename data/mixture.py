"""Several sources of samples as one endless order: which source a global sample number falls to, as arithmetic."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import blake2b
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.index import Index
from data.offsets import Entry
from data.order import Order, keyed_raw

_MIXTURE = 2  # a purpose of its own beside those of data.order
_SMALLEST_BLOCK, _LARGEST_BLOCK = 256, 1 << 17
_CACHED_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class _Block:
    """before: each source's turns before the block. sources: of the block's numbers. turns: for each of these numbers,
    how many turns its source had before it within the block."""

    before: list[int]
    sources: NDArray[np.int64]
    turns: NDArray[np.int64]


class Turns:
    """Whose turn it is at global number n, by weight.

    Numbers come in blocks; in each block every source has its quota of turns, permuted by (seed, block). Quotas are
    such that at the end of any block a source has had its exact share of all turns, to within one. So how many turns
    a source had before number n needs no history, and turns are as even as its weight allows: a block is long enough
    to hold the rarest source twice.

    weights: above 0, in any unit. Raises ValueError for others.
    """

    def __init__(self, weights: Sequence[float | Fraction], seed: int) -> None:
        if not weights or not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"weights={list(weights)} must be one or more numbers above 0")
        exact = [Fraction(weight) for weight in weights]
        self.seed = seed
        self._ends = [end / sum(exact) for end in accumulate(exact)]  # the last is 1
        wanted = 2 * sum(exact) / min(exact)
        if wanted > _LARGEST_BLOCK:
            raise ValueError(f"weights={list(weights)}: the smallest is below 1/{_LARGEST_BLOCK // 2} of all; raise it")
        self.block = max(_SMALLEST_BLOCK, 1 << (int(wanted) - 1).bit_length())
        self._blocks: OrderedDict[int, _Block] = OrderedDict()

    def at(self, number: int) -> tuple[int, int]:
        """The source at `number`, and how many turns it had before: the number within that source."""
        number_of_block, n = divmod(number, self.block)
        block = self._block(number_of_block)
        source = int(block.sources[n])
        return source, block.before[source] + int(block.turns[n])

    def counts(self, number: int) -> list[int]:
        """How many of the numbers below `number` fall to each source."""
        number_of_block, n = divmod(number, self.block)
        block = self._block(number_of_block)
        within = np.bincount(block.sources[:n], minlength=len(self._ends))
        return [before + int(count) for before, count in zip(block.before, within, strict=True)]

    def _before(self, block: int) -> list[int]:
        """Turns of each source before a block. Rounding the sums makes the turns add up to the numbers."""
        ends = [int(end * block * self.block) for end in self._ends]  # whole numbers of any size: exact
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]

    def _block(self, block: int) -> _Block:
        if block not in self._blocks:
            before = self._before(block)
            quotas = [end - start for start, end in zip(before, self._before(block + 1), strict=True)]
            raw = keyed_raw((self.seed, block), (0, _MIXTURE), self.block)
            sources = np.repeat(np.arange(len(quotas)), quotas)[np.argsort(raw, kind="stable")]
            turns = np.empty(self.block, dtype=np.int64)
            for source, quota in enumerate(quotas):
                turns[sources == source] = np.arange(quota)
            self._blocks[block] = _Block(before, sources, turns)
            while len(self._blocks) > _CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        return self._blocks[block]


@dataclass(frozen=True, slots=True)
class IndexedSource:
    """A source that samples are drawn from. name: "" for the only one. weight: its share, in any unit. images: where
    samples are latents, the fingerprint of the index of the images that they are of."""

    index: Index
    name: str = ""
    weight: float = 1.0
    images: str | None = None


class Mixture:
    """The order of the samples of several sources. Each source has an order of its own, which does not depend on the
    other sources or on the weights: n-th turn, n-th sample, every sample once in each epoch of its source.

    seed, group_shards, jitter_samples: see `data.order.Order`. Raises DataError for weights that cannot be.
    """

    def __init__(
        self, sources: Sequence[IndexedSource], seed: int, group_shards: int = 64, jitter_samples: int = 4096
    ) -> None:
        try:
            self._turns = Turns([source.weight for source in sources], seed)
        except ValueError as error:
            raise DataError(str(error)) from error
        self.sources = list(sources)
        self.orders = [
            Order(source.index.shard_sizes, seed_of(seed, source.name), group_shards, jitter_samples)
            for source in sources
        ]

    def sample(self, number: int) -> tuple[int, str, Entry]:
        """Source, shard URL and entry of the sample at global sample number `number`."""
        source, n = self._turns.at(number)
        return source, *self.sources[source].index.sample(self.orders[source].position(n))

    def pool(self, number: int) -> Index:
        """The samples that the one at a global sample number was drawn from."""
        return self.sources[self._turns.at(number)[0]].index

    def shape(self, number: int) -> None:
        """Of pictures at a global sample number: all have one, which is known elsewhere."""

    def seen(self, number: int) -> list[int]:
        """Samples of each source among the global sample numbers below `number`."""
        return self._turns.counts(number)


def seed_of(seed: int, name: str) -> int:
    """A named source draws from a seed of its own, or sources of one size would be read in the same order."""
    return seed if not name else int.from_bytes(blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")
