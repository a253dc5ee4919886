"""The 1.45B text-to-image model on one small machine: see tests/benchmarks/full_size.py, whose table this asserts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.full_size import measure


@pytest.mark.slow
@pytest.mark.full_size
@pytest.mark.timeout(5400)
def test_the_whole_model_trains_saves_and_goes_on_with_the_expected_loss(tmp_path: Path) -> None:
    assert measure(tmp_path)
