"""Laws of ZeRO's memory: what is sharded is divided by the ranks, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from training.engine_settings import EngineSettings
from training.planning.counting import Moment, Pass
from training.planning.memory import PERSISTENT_ELEMENTS, Trained, peak, phases, state

ELEMENTS = 10**9
MODEL = Trained(ELEMENTS, 0)
BUCKET = 5 * 10**7


def engine(stage: int, precision: str = "bf16") -> EngineSettings:
    return EngineSettings(stage, precision, bucket_elements=BUCKET, overlap_communication=True)


def training(*activations: float) -> Pass:
    """A backward pass with so many bytes of activations at its moments, the gradients coming evenly."""
    each = ELEMENTS // len(activations)
    return Pass(1.0, 2.0, tuple(Moment(size, i * each) for i, size in enumerate(activations)))


# Bytes a parameter: weight, gradient, optimizer (fp32 weight where it is separate, two moments), average.
@pytest.mark.parametrize(
    ("stage", "precision", "whole", "sharded"),
    [
        (0, "fp32", 4 + 4 + 8 + 4, 0),
        (1, "bf16", 2, 2 + 12 + 4),
        (2, "bf16", 2, 2 + 12 + 4),
        (3, "bf16", 0, 2 + 2 + 12 + 4),
        (1, "fp32", 4, 4 + 12 + 4),
        (3, "fp32", 0, 4 + 4 + 12 + 4),
    ],
)
@pytest.mark.parametrize("ranks", [1, 2, 8, 1024])
def test_the_state_takes_the_known_bytes_a_parameter(
    stage: int, precision: str, whole: int, sharded: int, ranks: int
) -> None:
    found = state(MODEL, engine(stage, precision), ranks)
    assert found.total == pytest.approx(ELEMENTS * (whole + sharded / ranks))
    assert found.ema == pytest.approx(4 * ELEMENTS / (1 if stage == 0 else ranks))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offload_takes_the_optimizers_state_off_the_gpu(stage: int) -> None:
    there, gone = (replace(engine(stage), offload_optimizer=place) for place in (None, "cpu"))
    before, after = (state(MODEL, settings, 8) for settings in (there, gone))
    assert before.total - after.total == pytest.approx((12 + 4) * ELEMENTS / 8)
    assert (after.optimizer, after.ema) == (0, 0)
    assert "update" not in phases(MODEL, gone, 8, 1, training(1e9))


def test_offload_takes_the_shards_of_weights_off_the_gpu() -> None:
    some = Trained(ELEMENTS, 10**6)
    settings = replace(engine(3), offload_optimizer="cpu", offload_param="cpu")
    assert state(some, settings, 8).weights == 2 * 10**6


def test_zero_3_leaves_small_parameters_whole() -> None:
    trained = Trained.of([PERSISTENT_ELEMENTS, PERSISTENT_ELEMENTS + 1])
    assert trained == Trained(2 * PERSISTENT_ELEMENTS + 1, PERSISTENT_ELEMENTS)
    few, none = (state(Trained(ELEMENTS, kept), engine(3), 4).weights for kept in (10**6, 0))
    assert few - none == 2 * 10**6


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_a_higher_stage_never_keeps_more_between_steps(ranks: int) -> None:
    totals = [state(MODEL, engine(stage, "fp32"), ranks).total for stage in (1, 2, 3)]
    assert totals == sorted(totals, reverse=True)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_activations_are_added_once_and_more_of_them_never_need_less(stage: int) -> None:
    totals = []
    for size in (10e9, 20e9):
        found = phases(MODEL, engine(stage), 8, 1, training(size, size / 2))["backward"]
        assert found.activations == size
        totals.append(found.total)
    assert totals[1] - totals[0] == pytest.approx(10e9)


def test_whole_gradients_grow_while_activations_shrink() -> None:
    """Without ZeRO the peak may come late in the backward pass."""
    found = phases(MODEL, engine(0, "fp32"), 8, 1, training(4e9, 3e9, 0.0))["backward"]
    assert (found.activations, found.gradients) == (3e9, 4 * (ELEMENTS // 3))


def test_zero_1_keeps_whole_gradients_over_micro_batches_and_zero_2_shards() -> None:
    whole, shards = (phases(MODEL, engine(s), 8, 2, training(1e9))["backward"].gradients for s in (1, 2))
    assert whole == pytest.approx(2 * ELEMENTS * (1 + 1 / 8))
    assert shards == pytest.approx(2 * 2 * ELEMENTS / 8)


def test_an_update_turns_the_share_into_fp32_after_the_activations_are_gone() -> None:
    found = phases(MODEL, engine(2), 8, 1, training(50e9))["update"]
    assert found.activations == 0
    assert found.gradients == pytest.approx((2 + 2 + 4) * ELEMENTS / 8)


def test_what_is_frozen_is_there_at_every_moment_and_encoding_comes_before_training() -> None:
    encoding = Pass(1.0, 0.0, (Moment(90e9, 0),))
    found = phases(MODEL, engine(2), 8, 1, training(1e9), encoding, others=3e9)
    assert all(parts.others == 3e9 for parts in found.values())
    assert peak(found) is found["encoding"]
    assert found["encoding"].gradients == 0
