"""The gate of the feed-forward: GEGLU, with less kept for its gradient."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import gated
from tests.models.memory import bytes_kept


def geglu(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def test_is_the_first_half_times_gelu_of_the_second_and_so_is_its_gradient() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, 24, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(gated(x), geglu(x))
    assert torch.autograd.gradcheck(gated, (x,))
    with torch.no_grad():
        torch.testing.assert_close(gated(x), geglu(x))


def test_keeps_nothing_but_its_input() -> None:
    x = torch.randn(4, 16, 64, requires_grad=True)
    whole = x.numel() * x.element_size()
    assert bytes_kept(lambda: gated(x)) == whole
    assert bytes_kept(lambda: geglu(x)) > 1.4 * whole
