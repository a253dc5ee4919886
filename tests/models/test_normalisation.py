"""Group normalisation followed by SiLU: the same as torch's two layers, and less is kept for the gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.normalisation import group_norm, normalised_silu
from tests.models.memory import bytes_kept

ORDERS = [torch.contiguous_format, torch.channels_last]


def example(order: torch.memory_format) -> tuple[nn.GroupNorm, Tensor, Tensor]:
    torch.manual_seed(0)
    norm = group_norm(64, 1e-5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (3 * torch.randn(2, 64, 6, 5) + 1).contiguous(memory_format=order)
    return norm, x, torch.randn(2, 64, 6, 5)


@pytest.mark.parametrize("order", ORDERS)
def test_equals_silu_of_the_norm_and_so_do_its_gradients(order: torch.memory_format) -> None:
    norm, x, gradient = example(order)
    found, wanted = [], []
    for layer, results in ((normalised_silu, found), (lambda norm, x: F.silu(norm(x)), wanted)):
        norm.zero_grad()
        given = x.clone().requires_grad_()
        y = layer(norm, given)
        y.backward(gradient)
        results += [y.detach(), given.grad, norm.weight.grad, norm.bias.grad]
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def test_of_a_view_that_is_in_no_order() -> None:
    norm, x, _ = example(torch.contiguous_format)
    view = x.transpose(2, 3).requires_grad_()
    torch.testing.assert_close(normalised_silu(norm, view), F.silu(norm(view)))


def test_without_gradients_it_is_the_same() -> None:
    norm, x, _ = example(torch.contiguous_format)
    with torch.no_grad():
        found = normalised_silu(norm, x)
    torch.testing.assert_close(found, F.silu(norm(x)))


def test_keeps_nothing_but_its_input() -> None:
    norm, x, _ = example(torch.contiguous_format)
    x.requires_grad_()
    map_bytes = x.numel() * x.element_size()
    assert bytes_kept(lambda: normalised_silu(norm, x)) < 1.1 * map_bytes
    assert bytes_kept(lambda: F.silu(norm(x))) > 2 * map_bytes


def test_parameters_of_another_precision_are_normalised_by_torch() -> None:
    norm, x, _ = example(torch.contiguous_format)
    with torch.autocast("cpu", torch.bfloat16):
        found = normalised_silu(norm, x.requires_grad_())
        wanted = F.silu(norm(x))
    assert found.dtype == wanted.dtype
    assert torch.equal(found, wanted)
