"""The law of the stream: what a step trains on follows from seed, step and indices, and from nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from made_files import make_png, make_shard, make_tar

from data.batch import Batch
from data.index import Index
from data.loader import Loader
from data.mixture import IndexedSource
from data.stream import Storage

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
GLOBAL_BATCH = 8
STEPS = 9  # more than an epoch of each source
SIZES = {"large": (9, 3, 0, 14, 6), "small": (5, 4)}
Step = dict[int, tuple[int, str, bytes, tuple[str, ...]]]
"""What was trained on under each global sample number: source, caption, pixels, faults."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[IndexedSource]:
    """Two sources whose shards are uneven, one of them empty; one sample is bad."""
    found = []
    for name, sizes in SIZES.items():
        folder = tmp_path_factory.mktemp(name)
        first = 0
        for number, size in enumerate(sizes):
            (folder / f"{number:05d}.tar").write_bytes(make_shard(first, size))
            first += size
        bad = {"bad.png": make_png(1)[:60], "bad.txt": b"bad"}
        (folder / "bad.tar").write_bytes(make_tar(bad))
        found.append(IndexedSource(Index.load(str(folder), Storage()), name, {"large": 2.5, "small": 1}[name]))
    return found


def loader(sources: list[IndexedSource], world: int, rank: int, workers: int, **options: Any) -> Loader:
    micro_batch = max(1, GLOBAL_BATCH // world // 2)
    settings = {"seed": 11, "image_size": 6, "inputs": {}, "scaled_side": 8, "flip": True, "group_shards": 2}
    settings |= {"global_batch": GLOBAL_BATCH, "micro_batch": micro_batch, "rank": rank, "world": world}
    settings |= {"workers": workers, "jitter_samples": 4, "max_bad_share": 1.0}
    return Loader(sources, Storage(), **(settings | options))


def steps(sources: list[IndexedSource], world: int, workers: int, first: int, count: int, **options: Any) -> list[Step]:
    """What all ranks together train on in each step."""
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
    return found


def _rows(batch: Batch) -> Iterator[tuple[int, tuple[int, str, bytes, tuple[str, ...]]]]:
    for row, number in enumerate(batch.numbers.tolist()):
        faults = tuple(fault.key for fault in batch.faults if fault.number == number)
        yield number, (int(batch.sources[row]), batch.captions[row], batch.images[row].numpy().tobytes(), faults)


@pytest.fixture(scope="module")
def alone(sources: list[IndexedSource]) -> list[Step]:
    """One rank without workers."""
    found = steps(sources, 1, 0, 0, STEPS)
    assert [sorted(step) for step in found] == [list(range(8 * n, 8 * n + 8)) for n in range(STEPS)]
    return found


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_ranks_and_workers_change_nothing(
    sources: list[IndexedSource], alone: list[Step], world: int, workers: int
) -> None:
    assert steps(sources, world, workers, 0, 4) == alone[:4]


def test_every_good_sample_once_in_each_epoch_of_its_source(alone: list[Step]) -> None:
    rows = [row for step in alone for _, row in sorted(step.items())]
    for source, size in enumerate(map(sum, SIZES.values())):
        of_source = [(caption, faults) for at, caption, _, faults in rows if at == source]
        assert len(of_source) > size + 1
        good = [caption for caption, faults in of_source[: size + 1] if not faults]
        assert sorted(good) == sorted(f"picture {number}" for number in range(size))


def test_a_restart_with_other_ranks_and_workers_goes_on_as_if_nothing_had_happened(
    sources: list[IndexedSource], alone: list[Step]
) -> None:
    """Workers of the first part have read ahead when it is closed: that must not be counted as trained on."""
    choose = random.Random(4)
    for _ in range(3):
        stop = choose.randrange(1, STEPS - 1)
        before, after = ((choose.choice([1, 2, 4, 8]), choose.choice([0, 1, 2])) for _ in range(2))
        together = steps(sources, *before, 0, stop) + steps(sources, *after, stop, STEPS - stop)
        assert together == alone, f"{before} until step {stop}, then {after}"


@pytest.mark.parametrize("batches_ahead", [1, 7])
def test_reading_ahead_changes_nothing(sources: list[IndexedSource], alone: list[Step], batches_ahead: int) -> None:
    assert steps(sources, 2, 2, 1, 3, batches_ahead=batches_ahead) == alone[1:4]


def test_everything_follows_from_the_seed(sources: list[IndexedSource], alone: list[Step]) -> None:
    assert steps(sources, 1, 0, 0, 2, seed=12) != alone[:2]
