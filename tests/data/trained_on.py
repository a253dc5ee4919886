"""What all ranks together train on in each step."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from data.batch import Batch
from data.loader import Loader
from data.mixture import IndexedSource
from data.stream import Storage

GLOBAL_BATCH = 8
Row = tuple[int, str, tuple[int, ...], bytes, tuple[str, ...]]
"""Source, caption, shape, pixels, faults."""
Step = dict[int, Row]
"""By global sample number."""


def loader(sources: Sequence[IndexedSource], world: int, rank: int, workers: int, **options: Any) -> Loader:
    """One rank's. options: image_size and scaled_side, and what differs from these settings."""
    settings: dict[str, Any] = {"seed": 11, "inputs": {}, "flip": True, "group_shards": 2, "jitter_samples": 4}
    settings |= {"global_batch": GLOBAL_BATCH, "micro_batch": max(1, GLOBAL_BATCH // world // 2), "rank": rank}
    settings |= {"world": world, "workers": workers, "max_bad_share": 1.0}
    return Loader(sources, Storage(), **(settings | options))


def steps(
    sources: Sequence[IndexedSource], world: int, workers: int, first: int, count: int, **options: Any
) -> list[Step]:
    """Of the steps [first, first + count), by as many ranks with so many workers each."""
    found: list[Step] = [{} for _ in range(count)]
    for rank in range(world):
        one = loader(sources, world, rank, workers, **options)
        stream = one.batches(first)
        for step in range(count):
            for batch in islice(stream, one.accumulation):
                rows = dict(_rows(batch))
                assert not rows.keys() & found[step].keys()
                found[step] |= rows
        stream.close()
    numbers = [list(range(GLOBAL_BATCH * n, GLOBAL_BATCH * (n + 1))) for n in range(first, first + count)]
    assert [sorted(step) for step in found] == numbers
    return found


def _rows(batch: Batch) -> Iterator[tuple[int, Row]]:
    for row, number in enumerate(batch.numbers.tolist()):
        faults = tuple(fault.key for fault in batch.faults if fault.number == number)
        source, caption, image = int(batch.sources[row]), batch.captions[row], batch.images[row]
        yield number, (source, caption, tuple(image.shape), image.numpy().tobytes(), faults)
