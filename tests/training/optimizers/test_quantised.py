"""Eight bits an element: how far from what was written, and that nothing drifts by being read and written."""

from __future__ import annotations

import pytest
import torch

from training.optimizers.quantised import BLOCK, Quantised, code_values

CPU = torch.device("cpu")


def numbers(count: int, signed: bool) -> torch.Tensor:
    """Of many magnitudes, as moments are."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(count, generator=generator) * 10 ** torch.randn(count, generator=generator)
    return values if signed else values.square()


def written(values: torch.Tensor, signed: bool) -> Quantised:
    quantised = Quantised(len(values), signed, CPU)
    quantised.write(0, values)
    return quantised


@pytest.mark.parametrize("signed", [True, False])
def test_codes_fill_a_byte_and_reach_the_scale(signed: bool) -> None:
    values = code_values(signed, CPU)
    assert len(values) == 255
    assert (values.diff() > 0).all()
    assert values[-1] == 1
    assert (values == 0).any() == signed
    assert not signed or torch.equal(values, -values.flip(0))


@pytest.mark.parametrize("signed", [True, False])
def test_an_element_is_off_by_half_a_step_at_most_and_the_largest_not_at_all(signed: bool) -> None:
    values = numbers(20 * BLOCK + 7, signed)
    found = written(values, signed).read(0, len(values))
    for block, kept in zip(values.split(BLOCK), found.split(BLOCK), strict=True):
        scale = block.abs().max()
        assert (block - kept).abs().max() <= scale * 0.9 / (64 if signed else 128) / 2 * 1.001
        assert kept[block.abs().argmax()] == block[block.abs().argmax()]


@pytest.mark.parametrize("signed", [True, False])
def test_what_was_read_is_written_as_the_same_bits(signed: bool) -> None:
    once = written(numbers(20 * BLOCK + 7, signed), signed)
    again = written(once.read(0, len(once.codes)), signed)
    assert torch.equal(again.codes, once.codes)
    assert torch.equal(again.scales, once.scales)


def test_parts_are_those_of_the_whole() -> None:
    values = numbers(4 * BLOCK + 7, True)
    whole = written(values, True)
    parts = Quantised(len(values), True, CPU)
    for start in range(0, len(values), 2 * BLOCK):
        parts.write(start, values[start : start + 2 * BLOCK])
    assert torch.equal(parts.codes, whole.codes)
    read = whole.read(0, len(values))
    for start, count in ((0, 1), (BLOCK - 1, 2), (3 * BLOCK + 5, BLOCK + 2), (BLOCK, BLOCK), (5, 0)):
        assert torch.equal(whole.read(start, count), read[start : start + count])


def test_zeros_stay_and_a_positive_number_never_becomes_one() -> None:
    for signed in (True, False):
        assert not Quantised(BLOCK + 1, signed, CPU).read(0, BLOCK + 1).any()
        assert not written(torch.zeros(BLOCK + 1), signed).read(0, BLOCK + 1).any()
    values = torch.logspace(-20, 0, BLOCK)
    assert (written(values, signed=False).read(0, BLOCK) > 0).all()
