"""The law of buckets: a step's pictures have one size, and which they are follows from seed, step and indices alone."""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_files import make_tar
from PIL import Image
from trained_on import GLOBAL_BATCH, Step, loader, steps

from data.bucketing import Bucketed, _homes
from data.buckets import Buckets
from data.errors import DataError
from data.index import Index
from data.indexing import build_index
from data.mixture import IndexedSource
from data.stream import Storage

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
BUCKETS = Buckets(16, 4, 2.0)  # 12 x 20, 16 x 16, 20 x 12
OPTIONS: dict[str, Any] = {"image_size": 16, "scaled_side": 20, "buckets": BUCKETS}
STEPS = 24
PICTURES = ((12, 20), (30, 50), (16, 16), (40, 41), (20, 12), (64, 30))
SHARES = (1, 2, 5, 5, 3, 2)
Sources = list[IndexedSource]


def make_shards(folder: Path, name: str, sizes: tuple[int, ...], bad: frozenset[int] = frozenset()) -> Index:
    """Pictures of several aspects, which their captions tell; of bad ones the metadata are right, the bytes aren't."""
    number = 0
    for shard, size in enumerate(sizes):
        members: dict[str, bytes] = {}
        for _ in range(size):
            width, height = random.Random(f"{name}/{number}").choices(PICTURES, SHARES)[0]
            buffer = io.BytesIO()
            pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, "PNG")
            key = f"{number:06d}"
            members[f"{key}.png"] = buffer.getvalue()[: 50 if number in bad else None]
            members[f"{key}.txt"] = f"{number} {width} {height}".encode()
            members[f"{key}.json"] = json.dumps({"width": width, "height": height}).encode()
            number += 1
        (folder / f"{shard:05d}.tar").write_bytes(make_tar(members))
    return Index.load(build_index(str(folder), str(folder), Storage(), buckets=BUCKETS), Storage())


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Two, with uneven shards, one of them empty, and a bad sample."""
    large = make_shards(tmp_path_factory.mktemp("large"), "large", (19, 13, 0, 34, 16), frozenset({7}))
    small = make_shards(tmp_path_factory.mktemp("small"), "small", (15, 14))
    return [IndexedSource(large, "large", 2.5), IndexedSource(small, "small", 1.0)]


@pytest.fixture(scope="module")
def alone(sources: Sources) -> list[Step]:
    """One rank without workers."""
    return steps(sources, 1, 0, 0, STEPS, **OPTIONS)


def own_size(caption: str) -> tuple[int, int]:
    """The size that a picture is cut to."""
    _, width, height = map(int, caption.split())
    return BUCKETS.sizes[BUCKETS.numbers([(width, height)])[0]]


def test_a_step_has_pictures_of_one_size_and_that_is_their_own(alone: list[Step]) -> None:
    seen = Counter[tuple[int, int]]()
    for step in alone:
        [(_, height, width)] = {shape for _, _, shape, _, _ in step.values()}
        assert {own_size(caption) for _, caption, _, _, _ in step.values()} == {(width, height)}
        seen[width, height] += 1
    assert set(seen) == set(BUCKETS.sizes) and seen[16, 16] == max(seen.values())


RANKS_AND_WORKERS = [(world, workers) for world in (1, 2, 4, 8) for workers in (0, 1, 3)]
QUICK = {(1, 1), (1, 3), (2, 0), (2, 1), (4, 0), (8, 0)}


@pytest.mark.parametrize(
    ("world", "workers"),
    [pytest.param(*both, marks=() if both in QUICK else pytest.mark.slow) for both in RANKS_AND_WORKERS],
)
def test_ranks_and_workers_change_nothing(sources: Sources, alone: list[Step], world: int, workers: int) -> None:
    count = 4 if workers < 2 else 2
    assert steps(sources, world, workers, 0, count, **OPTIONS) == alone[:count]


def test_a_restart_with_other_ranks_and_workers_goes_on_as_if_nothing_had_happened(
    sources: Sources, alone: list[Step]
) -> None:
    choose = random.Random(4)
    for workers in ((1, 0), (0, 1)):
        stop = choose.randrange(1, 5)
        before, after = ((choose.choice([1, 2, 4, 8]), n) for n in workers)
        together = steps(sources, *before, 0, stop, **OPTIONS) + steps(sources, *after, stop, 6 - stop, **OPTIONS)
        assert together == alone[:6], f"{before} until step {stop}, then {after}"


def test_every_sample_of_a_bucket_once_in_each_of_its_epochs(sources: Sources) -> None:
    """And none is left out: the epochs of all buckets together are the source's."""
    numbered = Bucketed(sources, BUCKETS, GLOBAL_BATCH, 5, 2, 4)
    met: dict[tuple[int, tuple[int, int]], list[str]] = {}
    for number in range(12 * 8 * GLOBAL_BATCH):
        source, _, entry = numbered.sample(number)
        met.setdefault((source, numbered.shape(number)), []).append(entry.key)
    for number, source in enumerate(sources):
        of_epoch = []
        for (at, _), keys in met.items():
            if at != number:
                continue
            epoch = len(set(keys))
            assert len(keys) > 2 * epoch, "the test is to see two epochs"
            first, second = keys[:epoch], keys[epoch : 2 * epoch]
            assert sorted(first) == sorted(second) == sorted(set(keys)) and first != second
            of_epoch += first
        assert sorted(of_epoch) == sorted({source.index.sample(n)[1].key for n in range(len(source.index))})


def test_after_any_number_of_epochs_all_have_been_seen_as_often_to_a_few_batches(sources: Sources) -> None:
    """What the end of an epoch costs: in each bucket some batches come early or late."""
    [large, _] = sources
    numbered = Bucketed([large], BUCKETS, GLOBAL_BATCH, 5)
    epochs = 50
    seen = numbered.seen_of_sizes(epochs * len(large.index))
    sizes = dict(zip(BUCKETS.sizes, large.index.in_buckets.sum(0).tolist(), strict=True))
    for size, count in seen.items():
        assert abs(count - epochs * sizes[size]) < 0.05 * epochs * sizes[size]
    late = 256 * 10**6 * GLOBAL_BATCH  # the end of a block of turns, where shares are exact
    for size, count in numbered.seen_of_sizes(late).items():
        assert abs(count - late * sizes[size] / len(large.index)) <= GLOBAL_BATCH


def test_counts_are_those_of_what_was_drawn_and_sources_have_their_weights(sources: Sources) -> None:
    numbered = Bucketed(sources, BUCKETS, GLOBAL_BATCH, 5)
    seen, sizes = [0, 0], Counter[tuple[int, int]]()
    for number in range(2000):
        if number % 37 == 0:
            assert numbered.seen(number) == seen
            assert Counter(numbered.seen_of_sizes(number)) == sizes
        seen[numbered.sample(number)[0]] += 1
        height, width = numbered.shape(number)
        sizes[width, height] += 1
    late = 256 * 1000 * GLOBAL_BATCH
    assert numbered.seen(late)[0] / late == pytest.approx(2.5 / 3.5, rel=1e-3)
    metrics = loader(sources, 1, 0, 0, **OPTIONS).account(80)
    assert sum(value for name, value in metrics.items() if name.startswith("data/size/")) == 80
    assert metrics["data/samples/large"] + metrics["data/samples/small"] == 80


def test_a_bad_sample_is_replaced_by_one_of_its_bucket(alone: list[Step]) -> None:
    replaced = [(caption, shape, faults) for step in alone for _, caption, shape, _, faults in step.values() if faults]
    assert {faults for _, _, faults in replaced} == {("000007",)}
    for caption, (_, height, width), _ in replaced:
        assert own_size(caption) == (width, height)


def test_buckets_that_are_not_full_are_given_up() -> None:
    sizes = Buckets(1024, 64, 2.0).sizes
    counts = np.array([[3, 100, 0, 900, 10**6, 900, 12, 40, 2], [0, 0, 0, 0, 70, 0, 0, 1, 0]])
    weights = [Fraction(1, 2) / int(counts[0].sum()), Fraction(1, 2) / int(counts[1].sum())]
    first, second = _homes(counts, weights, sizes, 41).tolist()
    assert first == [1, 1, 3, 3, 4, 5, 5, 5, 5], "40 of two million are too few of a source's, 12 of all for a batch"
    assert second == [4, 4, 4, 4, 4, 4, 7, 7, 7], "one of 71 isn't"
    few = np.array([[0, 0, 0, 0, 9, 0, 0, 0, 0], [0, 2, 0, 0, 0, 0, 0, 0, 1]])
    assert _homes(few, weights, sizes, 41).tolist() == [[4] * 9] * 2


def test_an_index_of_other_buckets_or_none_is_refused(sources: Sources, shards: Callable[..., str]) -> None:
    plain = IndexedSource(Index.load(shards(20), Storage()))
    for these in ([plain], [sources[0], plain]):
        with pytest.raises(DataError, match="isn't sorted into buckets"):
            loader(these, 1, 0, 0, **OPTIONS)
    with pytest.raises(DataError, match="isn't sorted into buckets"):
        loader(sources, 1, 0, 0, **OPTIONS | {"buckets": Buckets(16, 4, 4.0)})
    with pytest.raises(DataError, match="latents are of squares"):
        loader(sources, 1, 0, 0, latents=True, **OPTIONS | {"scaled_side": None})


def test_without_buckets_their_index_is_one_like_others(sources: Sources) -> None:
    [batch] = islice(loader(sources, 1, 0, 0, **OPTIONS | {"buckets": None}).batches(), 1)
    assert batch.images.shape[2:] == (16, 16)
