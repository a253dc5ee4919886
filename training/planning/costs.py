"""Time, money, checkpoints and reading of a run: arithmetic on what is assumed."""

from __future__ import annotations

import math
from dataclasses import dataclass

GROUP_SHARDS = 64  # read side by side (data.order.Order)
REQUESTS_PER_PREFIX = 5500  # a second, which AWS S3 promises for reading


@dataclass(frozen=True)
class Checkpointing:
    """What checkpoints of `elements` parameters cost: every rank copies its share to host memory while training stands
    still, and its node writes it behind training.

    kinds: float32 numbers that are kept of each parameter. copy_rate: bytes a second that a rank copies; None where its
    state lies in files, which are read while training waits. write_rate: bytes a second that a node writes.
    """

    elements: int
    kinds: int
    ranks: int
    nodes: int
    copy_rate: float | None
    write_rate: float

    @property
    def size(self) -> float:
        """Bytes of one."""
        return float(4 * self.kinds * self.elements)

    @property
    def seconds(self) -> float:
        """To write one."""
        return self.size / (self.nodes * self.write_rate)

    @property
    def stall(self) -> float:
        """Seconds that training stands still for one."""
        return self.seconds if self.copy_rate is None else self.size / (self.ranks * self.copy_rate)

    def best_interval(self, seconds_between_failures: float) -> float:
        """Seconds between two, for the least time lost to standing still and to repeating: sqrt(2 δ M) (Young 1974);
        and not before the one before is written."""
        return max(self.seconds, math.sqrt(2 * self.stall * seconds_between_failures))

    def lost_share(self, interval: float, seconds_between_failures: float) -> float:
        """Share of the time that goes into standing still, and into repeating after a failure: half an interval, and
        what was trained while the newest checkpoint was being written."""
        return self.stall / interval + (interval / 2 + self.seconds) / seconds_between_failures


def bytes_read_per_sample(sample_bytes: float, block_bytes: int, caches: int) -> float:
    """Expected bytes that the store sends for a sample when `caches` caches share the samples at random.

    A block is sent to every cache that reads one of the samples that touch it, and once to each: caches are taken to
    be large enough to keep a block until its last sample.
    """
    touching = (sample_bytes + block_bytes) / sample_bytes  # samples that touch a block
    blocks = block_bytes / sample_bytes  # samples' worth of bytes in a block
    return block_bytes * caches * (1 - (1 - 1 / caches) ** touching) / blocks


@dataclass(frozen=True)
class Reading:
    """What a run reads from its store. rate: bytes a second, of all ranks."""

    bytes_per_sample: float
    images_per_second: float
    block_bytes: int
    samples: float
    samples_per_shard: int

    @property
    def rate(self) -> float:
        """Bytes a second, of all ranks."""
        return self.bytes_per_sample * self.images_per_second

    @property
    def requests(self) -> float:
        """A second, one for each block."""
        return self.rate / self.block_bytes

    @property
    def shards(self) -> int:
        """Of the whole data set."""
        return math.ceil(self.samples / self.samples_per_shard)

    def doubts(self, sample_bytes: float, nodes: int, read_bytes_per_second: float) -> list[str]:
        """What is likely to go wrong, each with its remedy."""
        found = []
        if self.bytes_per_sample > 2 * sample_bytes:
            found.append(
                f"the store sends {self.bytes_per_sample / sample_bytes:.1f} times the bytes that are used, as other "
                f"ranks use the rest of a block: set data.storage.block_bytes nearer to {sample_bytes:.0f}, or "
                "data.storage.cache_folder, which the ranks of a node share"
            )
        if self.shards < GROUP_SHARDS:
            found.append(
                f"{self.shards} shards: {GROUP_SHARDS} are read side by side, so neighbours in the order come from "
                f"few; write more and smaller ones (data.samples_per_shard below {self.samples / GROUP_SHARDS:,.0f})"
            )
        if self.requests > REQUESTS_PER_PREFIX:
            found.append(
                f"{self.requests:,.0f} requests a second: S3 promises {REQUESTS_PER_PREFIX:,} for one prefix; spread "
                "the shards over several, or set data.storage.cache_folder"
            )
        if self.rate > nodes * read_bytes_per_second:
            found.append(
                f"{self.rate / nodes / 1e9:.1f} GB/s a node, of {read_bytes_per_second / 1e9:.1f} assumed: training "
                "would wait for data"
            )
        return found
