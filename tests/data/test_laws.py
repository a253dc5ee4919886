"""The law of the stream: what a step trains on follows from seed, step and indices, and from nothing else."""

from __future__ import annotations

import random

import pytest
from made_files import make_png, make_shard, make_tar
from trained_on import Step, steps

from data.index import Index
from data.mixture import IndexedSource
from data.stream import Storage

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
SIZE = {"image_size": 6, "scaled_side": 8}
STEPS = 9  # more than an epoch of each source
SIZES = {"large": (9, 3, 0, 14, 6), "small": (5, 4)}


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


@pytest.fixture(scope="module")
def alone(sources: list[IndexedSource]) -> list[Step]:
    """One rank without workers."""
    return steps(sources, 1, 0, 0, STEPS, **SIZE)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_ranks_and_workers_change_nothing(
    sources: list[IndexedSource], alone: list[Step], world: int, workers: int
) -> None:
    assert steps(sources, world, workers, 0, 4, **SIZE) == alone[:4]


def test_every_good_sample_once_in_each_epoch_of_its_source(alone: list[Step]) -> None:
    rows = [row for step in alone for _, row in sorted(step.items())]
    for source, size in enumerate(map(sum, SIZES.values())):
        of_source = [(caption, faults) for at, caption, _, _, faults in rows if at == source]
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
        together = steps(sources, *before, 0, stop, **SIZE) + steps(sources, *after, stop, STEPS - stop, **SIZE)
        assert together == alone, f"{before} until step {stop}, then {after}"


@pytest.mark.parametrize("batches_ahead", [1, 7])
def test_reading_ahead_changes_nothing(sources: list[IndexedSource], alone: list[Step], batches_ahead: int) -> None:
    assert steps(sources, 2, 2, 1, 3, batches_ahead=batches_ahead, **SIZE) == alone[1:4]


def test_everything_follows_from_the_seed(sources: list[IndexedSource], alone: list[Step]) -> None:
    assert steps(sources, 1, 0, 0, 2, seed=12, **SIZE) != alone[:2]
