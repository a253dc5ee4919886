"""The feed-forward's second half: GEGLU and a linear layer, with less kept for the gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.gated import GatedLinear
from tests.models.memory import bytes_kept


def plain(x: Tensor, layer: GatedLinear) -> Tensor:
    value, gate = x.chunk(2, dim=-1)
    return F.linear(value * F.gelu(gate), layer.weight, layer.bias)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_is_a_linear_layer_of_the_first_half_times_gelu_of_the_second_and_so_are_its_gradients(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    layer = GatedLinear(12, 5).to(dtype)
    x = torch.randn(2, 7, 24, dtype=dtype, requires_grad=True)
    weights = torch.randn(2, 7, 5, dtype=dtype)
    found, wanted = (
        torch.autograd.grad((made * weights).sum(), (x, layer.weight, layer.bias))
        for made in (layer(x), plain(x, layer))
    )
    torch.testing.assert_close(layer(x), plain(x, layer))
    torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain(x, layer))
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(lambda x: layer(x), (x,))


def test_follows_autocast() -> None:
    layer = GatedLinear(12, 5)
    x = torch.randn(2, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        made = layer(x)
    made.sum().backward()
    assert made.dtype == torch.bfloat16 and layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_is_counted_on_the_meta_device() -> None:
    layer = GatedLinear(12, 5).to("meta")
    layer(torch.empty(2, 24, device="meta", requires_grad=True)).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.shape == (5, 12)


def test_keeps_nothing_but_its_input() -> None:
    layer = GatedLinear(32, 8)
    x = torch.randn(4, 16, 64, requires_grad=True)
    whole = x.numel() * x.element_size()
    parameters = layer.weight.numel() * layer.weight.element_size()
    assert bytes_kept(lambda: layer(x)) in (whole, whole + parameters)
    assert bytes_kept(lambda: plain(x, layer)) > 1.9 * whole
