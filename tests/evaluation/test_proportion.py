"""The interval of a share is what others compute, and holds what it says."""

import pytest
import torch

from evaluation.proportion import wilson_interval


def test_wilson_interval() -> None:
    """Against values of other programs; it covers the truth as often as it says."""
    assert wilson_interval(15, 50) == pytest.approx((0.19103, 0.43749), abs=2e-5)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.27753), abs=2e-5)
    assert wilson_interval(10, 10)[1] == 1.0
    draws = torch.rand(2000, 40, generator=torch.Generator().manual_seed(0)) < 0.3
    drawn = draws.sum(1).tolist()
    covered = sum(low <= 0.3 <= high for low, high in (wilson_interval(k, 40) for k in drawn)) / 2000
    assert covered == pytest.approx(0.95, abs=0.03)
    for wrong in ((1, 0), (3, 2), (-1, 4)):
        with pytest.raises(ValueError, match="a share is of"):
            wilson_interval(*wrong)
