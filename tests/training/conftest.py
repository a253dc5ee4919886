"""What tests of training share: groups of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.training.ranks import RankGroup, Work

OnRanks = Callable[..., Any]


@pytest.fixture(scope="session")
def on_ranks() -> Iterator[OnRanks]:
    """on_ranks(world, work, *arguments): what `work(ranks, *arguments)` returned on rank 0 of a group of that size."""
    groups: dict[int, RankGroup] = {}

    def run(world: int, work: Work, *arguments: Any) -> Any:
        group = groups.pop(world, None) or RankGroup(world)
        result = group.run(work, *arguments)
        groups[world] = group  # not after a failure, which ends it
        return result

    yield run
    for group in groups.values():
        group.kill()
