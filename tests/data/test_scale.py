"""LAION-400M on 1,024 ranks, simulated: no step's first batch costs more than another's."""

import pytest

from tests.benchmarks.scale import in_fresh_process


@pytest.mark.slow
@pytest.mark.parametrize("bucketed", [False, True])
def test_the_first_batch_of_any_step_is_cheap(bucketed: bool) -> None:
    found = in_fresh_process([0, 600_000], rank=1023, bucketed=bucketed)
    for step in (0, 600_000):
        assert found["index"] + found[f"first {step}"] < 1
    assert found["mib"] < 1024
    assert found["mib"] - found["mib_before"] < 300
