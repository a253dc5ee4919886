"""How well the stream is shuffled, beside webdataset's shuffle buffer over shuffled shards, on simulated shards.

    python -m tests.benchmarks.shuffle

Reads nothing: samples are numbers, of 128 shards of 10,000. For each order:
neighbours: share of neighbours in the stream that are of different shards.
shards in 1,024: different shards among so many samples in a row, at most 128.
travel: how far a sample of the middle half of the stream stands from where it stood before samples were shuffled
(shards being in the same order), the median in samples. apart: what lies in the stream between two samples that were
neighbours in a shard, the median in samples.
held: samples that have to be in memory for it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from data.order import Order

SHARDS, SHARD_SAMPLES = 128, 10_000
BUFFERS = (1_000, 10_000)


def ours(shards: int, shard_samples: int, **options: int) -> NDArray[np.int64]:
    """Index positions of an epoch, in order."""
    order = Order([shard_samples] * shards, 0, **options)
    return np.array([order.position(n) for n in range(len(order))])


def of_webdataset(shards: int, shard_samples: int, buffer: int) -> NDArray[np.int64]:
    """The same of one worker of webdataset: shards shuffled, then its shuffle buffer."""
    from webdataset.filters import shuffle

    chooser = random.Random(0)
    sequence = list(range(shards))
    chooser.shuffle(sequence)

    def samples() -> Iterator[int]:
        for shard in sequence:
            yield from range(shard * shard_samples, (shard + 1) * shard_samples)

    return np.fromiter(shuffle(buffer, rng=chooser)(samples()), dtype=np.int64)


def quality(positions: NDArray[np.int64], shard_samples: int) -> dict[str, float]:
    """The statistics of an order of all samples of equal shards."""
    shard = positions // shard_samples
    rows = shard[: len(shard) // 1024 * 1024].reshape(-1, 1024)
    place = np.empty_like(positions)
    place[positions] = np.arange(len(positions))
    # shards in the order in which their middles come: where a sample would stand if only shards were shuffled
    middles = np.median(place.reshape(-1, shard_samples), axis=1)
    rank = np.argsort(np.argsort(middles, kind="stable"), kind="stable")
    before = rank[shard] * shard_samples + positions % shard_samples
    middle = slice(len(positions) // 4, 3 * len(positions) // 4)
    inside = np.arange(len(positions))[:-1] % shard_samples != shard_samples - 1
    return {
        "neighbours": float((shard[1:] != shard[:-1]).mean()),
        "shards in 1,024": float(np.mean([len(np.unique(row)) for row in rows[:: max(1, len(rows) // 200)]])),
        "travel": float(np.median(np.abs(before - np.arange(len(positions)))[middle])),
        "apart": float(np.median(np.abs(np.diff(place))[inside])),
    }


def main() -> None:
    """Prints the table."""
    orders = {"ours": (lambda: ours(SHARDS, SHARD_SAMPLES), 0)}
    for buffer in BUFFERS:
        orders[f"webdataset, shuffle({buffer:,})"] = (lambda b=buffer: of_webdataset(SHARDS, SHARD_SAMPLES, b), buffer)
    for name, (make, held) in orders.items():
        told = ", ".join(
            f"{key} {value:,.3f}".rstrip("0").rstrip(".") for key, value in quality(make(), SHARD_SAMPLES).items()
        )
        print(f"{name}: {told}, held {held:,}")


if __name__ == "__main__":
    main()
