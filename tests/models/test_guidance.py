"""Laws of classifier-free guidance."""

import pytest
import torch
from torch import Tensor

from models.conditioners import Condition
from models.guidance import classifier_free

Z_T = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
T = torch.tensor([1, 2, 3])
VALUES = torch.arange(1.0, 4.0).view(3, 1, 1, 1)
CONDITIONAL, UNCONDITIONAL = Condition(context=VALUES), Condition(context=-VALUES)


class Counting:
    """A denoiser that depends on all it is given, and counts its passes and samples."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.batches.append(len(z_t))
        return z_t.sin() * t[:, None, None, None] + condition.context**3


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.5, 7.5])
def test_it_extrapolates_from_unconditional_through_conditional(scale: float) -> None:
    plain = Counting()
    eps_u, eps_c = plain(Z_T, T, UNCONDITIONAL), plain(Z_T, T, CONDITIONAL)
    guided = classifier_free(Counting(), CONDITIONAL, UNCONDITIONAL, scale)(Z_T, T)
    torch.testing.assert_close(guided, (1 - scale) * eps_u + scale * eps_c)


def test_it_takes_one_doubled_pass_and_at_scale_one_a_plain_one() -> None:
    denoiser = Counting()
    classifier_free(denoiser, CONDITIONAL, UNCONDITIONAL, 3.0)(Z_T, T)
    assert denoiser.batches == [6]
    classifier_free(denoiser, CONDITIONAL, UNCONDITIONAL, 1.0)(Z_T, T)
    assert denoiser.batches == [6, 3]


def test_one_unconditional_condition_serves_all_samples() -> None:
    one = Condition(context=-VALUES[:1])
    shared = classifier_free(Counting(), CONDITIONAL, one, 3.0)(Z_T, T)
    repeated = classifier_free(Counting(), CONDITIONAL, one.repeated(3), 3.0)(Z_T, T)
    assert torch.equal(shared, repeated)
