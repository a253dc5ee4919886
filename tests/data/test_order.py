import numpy as np
import pytest

from data.order import Order
from tests.benchmarks.shuffle import of_webdataset, ours, quality

SIZES = [7, 1, 12, 0, 5, 9, 3, 20, 4]


def positions(order: Order, epoch: int) -> list[int]:
    return [order.position(epoch * len(order) + n) for n in range(len(order))]


@pytest.mark.parametrize("group_shards", [1, 2, 4, 64])
@pytest.mark.parametrize("jitter", [0, 3, 100])
def test_every_sample_once_per_epoch(group_shards: int, jitter: int) -> None:
    order = Order(SIZES, 3, group_shards, jitter)
    for epoch in (0, 1, 5):
        assert sorted(positions(order, epoch)) == list(range(sum(SIZES)))


def test_position_depends_on_the_number_alone() -> None:
    in_sequence = positions(Order(SIZES, 3, 2, 3), 4)
    fresh = [Order(SIZES, 3, 2, 3).position(4 * sum(SIZES) + n) for n in reversed(range(sum(SIZES)))]
    assert in_sequence == fresh[::-1]


def test_epochs_and_seeds_differ() -> None:
    order = Order(SIZES, 3)
    assert positions(order, 0) != positions(order, 1)
    assert positions(order, 0) != positions(Order(SIZES, 4), 0)


def test_order_is_the_same_in_every_version() -> None:
    """A change here changes what every resumed run trains on."""
    order = Order([4, 3, 5], 42, group_shards=2, jitter_samples=2)
    assert positions(order, 0) == [4, 0, 1, 5, 2, 6, 3, 7, 8, 9, 11, 10]
    assert positions(order, 1) == [7, 0, 8, 1, 2, 9, 10, 3, 11, 4, 6, 5]


def test_jitter_bounds_how_far_a_sample_moves_within_its_shard() -> None:
    size, jitter = 500, 20
    order = Order([size] * 4, 0, 4, jitter)
    found = np.array(positions(order, 0))
    for shard in range(4):
        within = found[found // size == shard] % size
        assert np.abs(within - np.arange(size)).max() <= jitter
        assert (within != np.arange(size)).any()


def test_groups_are_read_one_after_the_other() -> None:
    order = Order([50] * 8, 0, group_shards=2, jitter_samples=10)
    found = np.array(positions(order, 0)) // 50
    for group in range(4):
        assert len(set(found[group * 100 : (group + 1) * 100])) == 2


def test_jitter_of_a_shard_and_more_shuffles_completely() -> None:
    order = Order([500] * 4, 0, 4, 500)
    found = np.array(positions(order, 0))
    assert abs(np.corrcoef(found, np.arange(2000))[0, 1]) < 0.1
    assert abs(np.corrcoef(found % 500, np.arange(2000))[0, 1]) < 0.1


def test_late_epochs_cost_no_more_than_the_first() -> None:
    order = Order(SIZES, 3)
    assert 0 <= order.position(10**12) < sum(SIZES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 0), "holds no sample"),
        (([0, 0], 0), "holds no sample"),
        (([1], 0, 0), "group_shards=0"),
        (([1], 0, 1, -1), "jitter_samples=-1"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Order(*arguments)  # type: ignore[arg-type]


def test_neighbours_are_of_different_shards_and_no_sample_stays_near_its_own() -> None:
    """Beside a shuffle buffer over shuffled shards that holds a tenth of a shard, and ours holds nothing."""
    mixed = quality(ours(128, 500), 500)
    buffered = quality(of_webdataset(128, 500, 50), 500)
    assert mixed["neighbours"] > 1 - 2 / 64 > buffered["neighbours"]
    assert mixed["shards in 1,024"] >= 64 > buffered["shards in 1,024"]
    assert mixed["apart"] > 64 * 100 > buffered["apart"]
    assert mixed["travel"] > 64 * 100 > buffered["travel"]
