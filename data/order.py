"""Which sample stands at a global sample number: pure arithmetic on (seed, epoch, shard sizes).

A global sample number counts samples over all epochs: number = epoch * N + n. Ranks, workers, micro-batches
and restarts do not appear here, so they cannot change the order.
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Purposes of the keyed streams: they occupy the top word of the Philox counter, so no two purposes overlap.
_SHARDS, _JITTER = 0, 1
_CACHED_GROUPS = 4


def keyed_raw(key: tuple[int, int], stream: tuple[int, int], count: int) -> NDArray[np.uint64]:
    """`count` random 64-bit words that depend on `key` and `stream` alone (Philox 4x64).

    Raw words are used instead of numpy's distributions because numpy may change the latter between releases.
    """
    mask = 2**64 - 1
    bits = np.random.Philox(
        key=np.array([key[0] & mask, key[1] & mask], dtype=np.uint64),
        counter=np.array([0, 0, stream[0] & mask, stream[1] & mask], dtype=np.uint64),
    )
    return np.asarray(bits.random_raw(count), dtype=np.uint64)


class Order:
    """The order of samples, epoch after epoch; every sample stands exactly once in each epoch.

    Shards are permuted by (seed, epoch) and taken in groups of `group_shards`. Within a group samples are
    sorted by their relative position in their shard plus a keyed jitter: shards of a group are read side by
    side, each nearly from front to back, and no sample moves by more than `jitter_samples` within its shard.
    A shard not larger than `jitter_samples` is shuffled completely.

    shard_sizes: samples in each shard, in index order. Raises ValueError when there is no sample, or when
    `group_shards` or `jitter_samples` is out of range.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int] | NDArray[np.int64],
        seed: int,
        group_shards: int = 64,
        jitter_samples: int = 4096,
    ) -> None:
        self.sizes = np.asarray(shard_sizes, dtype=np.int64)
        if self.sizes.ndim != 1 or not self.sizes.size or self.sizes.min() < 0 or not self.sizes.sum():
            raise ValueError(f"shard_sizes={list(shard_sizes)!r} holds no sample: give at least one shard with one")
        if group_shards < 1:
            raise ValueError(f"group_shards={group_shards} must be at least 1")
        if jitter_samples < 0:
            raise ValueError(f"jitter_samples={jitter_samples} must be 0 (no jitter) or more")
        self.seed = seed
        self.group_shards = group_shards
        self.jitter_samples = jitter_samples
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self._epochs: OrderedDict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], NDArray[np.int64]] = OrderedDict()

    def __len__(self) -> int:
        """Samples in one epoch."""
        return int(self.sizes.sum())

    def position(self, number: int) -> int:
        """The index position of the sample at global sample number `number` (0 or more)."""
        if number < 0:
            raise ValueError(f"number={number} must be 0 or more")
        epoch, n = divmod(number, len(self))
        _, ends = self._epoch(epoch)
        group = int(np.searchsorted(ends, n, side="right"))
        begin = int(ends[group - 1]) if group else 0
        return int(self._group(epoch, group)[n - begin])

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shards of `epoch` in their order, and for each group the number of samples up to its end."""
        if epoch not in self._epochs:
            raw = keyed_raw((self.seed, epoch), (0, _SHARDS), len(self.sizes))
            shards = np.argsort(raw, kind="stable").astype(np.int64)
            ends = np.cumsum(np.add.reduceat(self.sizes[shards], np.arange(0, len(shards), self.group_shards)))
            self._epochs[epoch] = (shards, ends)
            while len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _group(self, epoch: int, group: int) -> NDArray[np.int64]:
        """Index positions of the samples of one group, in order."""
        cached = self._groups.get((epoch, group))
        if cached is not None:
            self._groups.move_to_end((epoch, group))
            return cached
        shards = self._epoch(epoch)[0][group * self.group_shards : (group + 1) * self.group_shards]
        sizes = self.sizes[shards]
        within = np.concatenate([np.arange(size) for size in sizes])  # position within the shard
        size = np.repeat(sizes, sizes)
        raw = keyed_raw((self.seed, epoch), (group, _JITTER), len(within))
        uniform = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53  # [0, 1)
        bounded = (within + self.jitter_samples * uniform) / (size + self.jitter_samples)
        key = np.where(size <= self.jitter_samples, uniform, bounded)
        positions = (np.repeat(self.starts[shards], sizes) + within)[np.argsort(key, kind="stable")]
        self._groups[epoch, group] = positions
        while len(self._groups) > _CACHED_GROUPS:
            self._groups.popitem(last=False)
        return positions
