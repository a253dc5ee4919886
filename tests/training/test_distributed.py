"""What ranks tell one another arrives whole, in rank order."""

from __future__ import annotations

import math
from typing import Any

import torch

from tests.training.conftest import OnRanks
from training.distributed import VALUE_BYTES, Distributed

ALONE = Distributed(0, 1, 0, torch.device("cpu"))


def told(ranks: Distributed, lengths: list[int]) -> list[Any]:
    value = {"rank": ranks.rank, "loss": 0.1 + ranks.rank, "none": float("inf"), "text": "é" * lengths[ranks.rank]}
    return ranks.gather_values(value)


def test_values_of_any_length(on_ranks: OnRanks) -> None:
    for lengths in ([3, 5], [0, VALUE_BYTES], [5 * VALUE_BYTES, 2]):
        found = on_ranks(2, told, lengths)
        assert [each["rank"] for each in found] == [0, 1]
        assert [each["loss"] for each in found] == [0.1, 1.1] and math.isinf(found[0]["none"])
        assert [len(each["text"]) for each in found] == lengths


def test_alone_a_value_is_what_others_would_get() -> None:
    assert ALONE.gather_values({"pair": (1, None)}) == [{"pair": [1, None]}]


def test_ranks_share_numbers_once_each_and_the_last_of_many_ranks_have_none() -> None:
    for count, world in ((10, 1), (10, 3), (2, 4)):
        shares = [Distributed(rank, world, 0, torch.device("cpu")).share(count, 2) for rank in range(world)]
        assert sorted(number for parts in shares for part in parts for number in part.tolist()) == list(range(count))
        assert all(1 <= len(part) <= 2 for parts in shares for part in parts)
        assert [bool(parts) for parts in shares] == [rank < count for rank in range(world)]
