"""Laws of what a run costs beside computing."""

from __future__ import annotations

import pytest

from training.planning.costs import Checkpointing, Reading, bytes_read_per_sample

SAMPLE, BLOCK = 25_000, 262_144


def test_one_cache_reads_every_byte_once_and_many_read_whole_blocks_for_a_sample() -> None:
    assert bytes_read_per_sample(SAMPLE, BLOCK, 1) == pytest.approx(SAMPLE)
    # A sample lies in two blocks or more wherever it doesn't begin with one.
    assert bytes_read_per_sample(SAMPLE, BLOCK, 10**6) == pytest.approx(SAMPLE + BLOCK, rel=1e-4)
    read = [bytes_read_per_sample(SAMPLE, BLOCK, caches) for caches in (1, 2, 8, 64, 1024)]
    assert read == sorted(read)


def test_small_blocks_waste_less() -> None:
    read = [bytes_read_per_sample(SAMPLE, block, 1024) for block in (4096, 16384, 65536, BLOCK)]
    assert read == sorted(read)


def test_no_interval_loses_less_than_the_best() -> None:
    saving = Checkpointing(10**9, 4, ranks=32, nodes=4, copy_rate=1e9, write_rate=1e9)
    assert saving.size == 16e9
    assert (saving.stall, saving.seconds) == pytest.approx((0.5, 4))
    failures = 86_400.0
    best = saving.best_interval(failures)
    least = saving.lost_share(best, failures)
    assert all(saving.lost_share(best * factor, failures) > least for factor in (0.5, 0.9, 1.1, 2))


def test_training_stands_still_for_the_copy_or_where_there_is_none_until_all_is_written() -> None:
    saving = Checkpointing(10**9, 4, ranks=32, nodes=4, copy_rate=None, write_rate=1e9)
    assert saving.stall == saving.seconds == pytest.approx(4)
    assert Checkpointing(10**9, 4, 32, 4, 1e9, 1e9).best_interval(1.0) == pytest.approx(4), "one at a time"


def test_doubts_are_told_with_their_remedy_and_go_with_it() -> None:
    def doubts(**changes: float) -> list[str]:
        settings = {"bytes_per_sample": SAMPLE, "images_per_second": 1000, "block_bytes": BLOCK, "samples": 10**8}
        settings |= {"samples_per_shard": 10_000, **changes}
        return Reading(**settings).doubts(SAMPLE, 4, 1e9)  # type: ignore[arg-type]

    assert doubts() == []
    for changes, word in (
        ({"bytes_per_sample": 10 * SAMPLE}, "data.storage.block_bytes"),
        ({"samples": 100_000}, "data.samples_per_shard"),
        ({"images_per_second": 10**5}, "data.storage.cache_folder"),
        ({"images_per_second": 10**6}, "wait for data"),
    ):
        assert any(word in doubt for doubt in doubts(**changes)), changes
