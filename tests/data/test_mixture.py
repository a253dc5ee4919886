import time
from collections.abc import Callable

import pytest

from data.errors import DataError
from data.index import Index
from data.mixture import IndexedSource, Mixture, Turns
from data.stream import Storage

WEIGHTS = (5, 0.3, 2.7, 1)


@pytest.mark.parametrize("weights", [(1,), (1, 1), WEIGHTS, (1e-3, 1, 1 / 3), (1, 500)])
def test_turns_of_a_source_are_its_numbers_in_sequence(weights: tuple[float, ...]) -> None:
    turns = Turns(weights, 3)
    met = [0] * len(weights)
    for number in range(3 * turns.block + 17):
        assert turns.counts(number) == met
        source, n = turns.at(number)
        assert n == met[source]
        met[source] += 1


def test_a_late_number_needs_no_history_and_has_exact_shares() -> None:
    late = 600_000 * 1024 * 64
    began = time.monotonic()
    counts = Turns(WEIGHTS, 3).counts(late)
    assert time.monotonic() - began < 1
    assert sum(counts) == late
    for count, weight in zip(counts, WEIGHTS, strict=True):
        assert abs(count - late * weight / sum(WEIGHTS)) < Turns(WEIGHTS, 3).block
    source, n = Turns(WEIGHTS, 3).at(late)
    assert n == counts[source]


@pytest.mark.parametrize("block", [1, 1000, 10**9])
def test_shares_are_exact_to_one_at_the_end_of_every_block(block: int) -> None:
    turns = Turns(WEIGHTS, 3)
    counts = turns.counts(block * turns.block)
    for count, weight in zip(counts, WEIGHTS, strict=True):
        assert abs(count - block * turns.block * weight / sum(WEIGHTS)) <= 1


def test_the_unit_of_weights_does_not_matter_and_the_seed_does() -> None:
    at = [[turns.at(n) for n in range(500)] for turns in (Turns((1, 3), 0), Turns((25, 75), 0), Turns((1, 3), 1))]
    assert at[0] == at[1] != at[2]


def test_turns_are_the_same_in_every_version() -> None:
    """A change here changes what every resumed run trains on."""
    turns = Turns((2, 1, 1), 42)
    assert [turns.at(n)[0] for n in range(12)] == [0, 1, 0, 2, 0, 1, 0, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("weights", [(), (0, 1), (-1, 1), (float("nan"), 1), (float("inf"), 1), (1e-6, 1)])
def test_weights_that_cannot_be(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="weights="):
        Turns(weights, 0)


@pytest.fixture
def mixture(shards: Callable[..., str]) -> Callable[..., Mixture]:
    indices = {name: Index.load(shards(*sizes, name=name), Storage()) for name, sizes in SIZES.items()}

    def mix(seed: int = 7, **weights: float) -> Mixture:
        return Mixture([IndexedSource(indices[name], name, weight) for name, weight in weights.items()], seed, 2)

    return mix


SIZES = {"a": (5, 9, 2), "b": (5, 9, 2), "c": (4,)}


def samples_of(mixture: Mixture, source: int, count: int) -> list[tuple[str, str]]:
    """Shard and key of the first samples of a source, in the order in which they come."""
    found: list[tuple[str, str]] = []
    number = 0
    while len(found) < count:
        of, url, entry = mixture.sample(number)
        if of == source:
            found.append((url, entry.key))
        number += 1
    return found


def test_every_sample_of_a_source_once_in_each_epoch_of_the_source(mixture: Callable[..., Mixture]) -> None:
    mixed = mixture(a=3, b=1, c=1)
    for source, epoch in enumerate((16, 16, 4)):
        found = samples_of(mixed, source, 3 * epoch)
        for first in range(0, 3 * epoch, epoch):
            assert len(set(found[first : first + epoch])) == epoch


def test_a_source_keeps_its_order_whatever_is_mixed_with_it(mixture: Callable[..., Mixture]) -> None:
    alone = samples_of(mixture(a=1), 0, 40)
    assert samples_of(mixture(a=1, b=5), 0, 40) == alone
    assert samples_of(mixture(b=2, c=1, a=0.5), 2, 40) == alone


def test_sources_of_one_size_have_different_orders(mixture: Callable[..., Mixture]) -> None:
    mixed = mixture(a=1, b=1)
    orders = [[(url[-9:], key) for url, key in samples_of(mixed, source, 32)] for source in (0, 1)]
    assert orders[0] != orders[1]


def test_a_mixture_tells_of_weights_that_cannot_be(mixture: Callable[..., Mixture]) -> None:
    with pytest.raises(DataError, match="weights=\\[1, 0\\]"):
        mixture(a=1, b=0)
