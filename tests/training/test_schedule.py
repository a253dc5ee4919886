"""Learning rates follow from the step alone."""

from __future__ import annotations

import itertools

import pytest

from training.schedule import LearningRate


def test_warm_up_is_linear_and_ends_at_the_base() -> None:
    rate = LearningRate(base=2.0, warmup_steps=4)
    assert [rate.at(step, 10, 8) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_a_warm_up_by_images_is_as_long_for_any_batch(decay: str) -> None:
    rate = LearningRate(base=1.0, warmup_images=1000, decay=decay)
    for batch in (1, 4, 10, 100, 300):
        by_images = [(batch * (step + 1), rate.at(step, 4000 // batch, batch)) for step in range(4000 // batch)]
        rising = [value for images, value in by_images if images <= 1000]
        assert rising == pytest.approx([images / 1000 for images, _ in by_images if images <= 1000])
        assert max(value for _, value in by_images) == 1.0
    steps = LearningRate(base=1.0, warmup_steps=10, decay=decay)
    assert [rate.at(step, 40, 100) for step in range(40)] == [steps.at(step, 40, 100) for step in range(40)]


def test_cosine_falls_from_base_to_floor() -> None:
    rate = LearningRate(base=1.0, decay="cosine", floor=0.1)
    values = [rate.at(step, 100, 8) for step in range(101)]
    assert values[0] == 1.0
    assert values[50] == pytest.approx(0.55)
    assert values[100] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(values))


def test_unknown_decay_names_the_choices() -> None:
    with pytest.raises(ValueError, match=r"linear.*constant.*cosine"):
        LearningRate(base=1.0, decay="linear")
