"""Batches of pictures of one size: which bucket a batch is of, and which samples of it, as arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from data.buckets import Buckets, Size
from data.errors import DataError
from data.index import Part
from data.mixture import IndexedSource, Turns, seed_of
from data.offsets import Entry
from data.order import Order
from data.view import Shape

_BATCHES = "/batches"  # no source has a name with a slash
_SMALLEST_SHARE = Fraction(1, 1 << 15)  # that data.mixture.Turns can give, twice over


@dataclass(frozen=True)
class _Bucket:
    """size: width and height in pixels. sources: numbers of those that have samples in it. parts, orders, turns: which
    samples of each, in which order, and whose turn it is."""

    size: Size
    sources: list[int]
    parts: list[Part]
    orders: list[Order]
    turns: Turns


class Bucketed:
    """The order of samples of several sources, where each global batch is of one bucket.

    Batches take turns among buckets by their shares of the samples (`data.mixture.Turns`), and a bucket's k-th batch is
    its numbers k·G to (k + 1)·G - 1, G = global_batch. These are drawn as a `data.mixture.Mixture` draws: sources take
    turns by weight and by their share of the bucket, and what a source has in a bucket comes in an order of its own,
    each sample once an epoch; an epoch's last batch is filled up with the first samples of the next one. All buckets of
    a source read its shards in the same sequence, and at the same pace. So the batch of a step follows from seed, step
    and indices, nothing is left out or repeated, and every source has its weight.

    A bucket with fewer samples than a batch is given up, and where a source has next to none in one, under 1/32,768 of
    all, its samples leave it: they go to that of the nearest aspect, to whose size they are cut.

    sources: with indices that are sorted into `buckets`. seed, group_shards, jitter_samples: see `data.order.Order`;
    jitter is less by as much as a bucket has fewer samples than its shards. Raises DataError for indices of other
    buckets, or none.
    """

    def __init__(
        self,
        sources: Sequence[IndexedSource],
        buckets: Buckets,
        global_batch: int,
        seed: int,
        group_shards: int = 64,
        jitter_samples: int = 4096,
    ) -> None:
        for source in sources:
            if not source.index.sorted_into(buckets.sizes):
                urls = f"{source.index.shards[0].url}…"
                raise DataError(f"the index of {urls} isn't sorted into buckets of {buckets.sizes}: prepare it again")
        self.sources = list(sources)
        self.global_batch = global_batch
        counts = np.stack([source.index.in_buckets.sum(0) for source in sources])  # [sources, buckets]
        total = sum(Fraction(source.weight) for source in sources)
        weights = [Fraction(source.weight) / total / len(source.index) for source in sources]  # of a sample
        homes = _homes(counts, weights, buckets.sizes, global_batch)  # [sources, buckets]
        self.buckets: list[_Bucket] = []
        shares: list[Fraction] = []
        for bucket in np.unique(homes[counts > 0]).tolist():
            there = [n for n in range(len(sources)) if counts[n, homes[n] == bucket].any()]
            parts = [Part(sources[n].index, np.flatnonzero(homes[n] == bucket).tolist()) for n in there]
            seeds = [seed_of(seed, sources[n].name) for n in there]
            jitters = [-(-jitter_samples * len(part) // len(part.index)) for part in parts]
            orders = [
                Order(part.shard_sizes, own_seed, group_shards, jitter)
                for part, own_seed, jitter in zip(parts, seeds, jitters, strict=True)
            ]
            within = [weights[n] * len(part) for n, part in zip(there, parts, strict=True)]
            self.buckets.append(_Bucket(buckets.sizes[bucket], there, parts, orders, Turns(within, seed)))
            shares.append(sum(within, start=Fraction(0)))
        self._turns = Turns(shares, seed_of(seed, _BATCHES))

    def sample(self, number: int) -> tuple[int, str, Entry]:
        """Source, shard URL and entry of the sample at global sample number `number`."""
        bucket, n = self._at(number)
        turn, k = bucket.turns.at(n)
        return bucket.sources[turn], *bucket.parts[turn].sample(bucket.orders[turn].position(k))

    def pool(self, number: int) -> Part:
        """The samples that the one at a global sample number was drawn from."""
        bucket, n = self._at(number)
        return bucket.parts[bucket.turns.at(n)[0]]

    def shape(self, number: int) -> Shape:
        """Of the picture at a global sample number: height and width in pixels."""
        width, height = self._at(number)[0].size
        return height, width

    def seen(self, number: int) -> list[int]:
        """Samples of each source among the global sample numbers below `number`."""
        found = [0] * len(self.sources)
        for bucket, count in zip(self.buckets, self._counts(number), strict=True):
            for source, seen in zip(bucket.sources, bucket.turns.counts(count), strict=True):
                found[source] += seen
        return found

    def seen_of_sizes(self, number: int) -> dict[Size, int]:
        """Samples of each size among the global sample numbers below `number`."""
        return {bucket.size: count for bucket, count in zip(self.buckets, self._counts(number), strict=True)}

    def _at(self, number: int) -> tuple[_Bucket, int]:
        """The bucket of a global sample number, and the number within it."""
        step, n = divmod(number, self.global_batch)
        bucket, batch = self._turns.at(step)
        return self.buckets[bucket], batch * self.global_batch + n

    def _counts(self, number: int) -> list[int]:
        """Samples of each bucket among the global sample numbers below `number`."""
        step, n = divmod(number, self.global_batch)
        found = [batches * self.global_batch for batches in self._turns.counts(step)]
        if n:
            found[self._turns.at(step)[0]] += n
        return found


def _homes(
    counts: NDArray[np.int64], weights: Sequence[Fraction], sizes: Sequence[Size], global_batch: int
) -> NDArray[np.int64]:
    """The bucket that each source's samples of each bucket go to, int64 [sources, buckets].

    counts: how many these are. weights: of a sample of each source, such that those of all samples are 1.
    """
    together = counts.sum(0)
    full = np.flatnonzero(together >= global_batch).tolist() or [int(together.argmax())]
    homes = np.empty_like(counts)
    aspects = np.log([width / height for width, height in sizes])
    for source, weight in enumerate(weights):
        own = [bucket for bucket in full if weight * int(counts[source, bucket]) >= _SMALLEST_SHARE]
        if not own:
            own = [_nearest(aspects, full)[counts[source].argmax()]]
        homes[source] = _nearest(aspects, own)
    return homes


def _nearest(aspects: NDArray[np.float64], own: Sequence[int]) -> NDArray[np.int64]:
    """For each of the aspects, logarithms, the nearest of those with the numbers `own`; of two the first."""
    distances = np.abs(aspects[:, None] - aspects[list(own)])  # [aspects, own]
    return np.array(own)[distances.round(6).argmin(1)]
