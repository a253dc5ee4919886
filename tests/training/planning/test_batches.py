"""Batches that ranks divide, and memory that holds them."""

from __future__ import annotations

from training.planning.batches import Room, micro_batches, nearest_batch, shown, stages_of
from training.planning.memory import Parts


def test_the_nearest_batch_is_one_that_the_ranks_divide() -> None:
    assert nearest_batch(680, 136) == 680
    assert nearest_batch(680, 128) == 640
    assert nearest_batch(680, 64) == 704
    assert nearest_batch(7, 1024) == 1024


def test_micro_batches_divide_a_rank_s_share() -> None:
    assert micro_batches(680, 8) == [1, 5, 17, 85]
    assert micro_batches(680, 680) == [1]


def test_some_of_many_are_shown_with_both_ends() -> None:
    sizes = list(range(1, 50))
    assert len(shown(sizes)) == 7
    assert (shown(sizes)[0], shown(sizes)[-1]) == (1, 49)
    assert shown([1, 2, 3]) == [1, 2, 3]


def test_a_gpu_holds_what_is_left_of_its_memory() -> None:
    room = Room(memory_bytes=80e9, reserved_bytes=2e9, fragmentation=0.04)
    assert room.holds(Parts(activations=75e9))
    assert not room.holds(Parts(activations=75e9, weights=0.1e9))


def test_without_fp32_weights_apart_there_is_no_stage_0() -> None:
    assert stages_of("fp32") == [0, 1, 2, 3]
    assert stages_of("bf16") == [1, 2, 3]
