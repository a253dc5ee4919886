"""A 3 x 3 convolution in half the multiplications is the convolution, forwards and backwards."""

import pytest
import torch
import torch.nn.functional as F

from models import winograd
from models.layers import Convolution3x3


@pytest.mark.parametrize("shape", [(2, 5, 7, 12), (1, 3, 1, 4), (8, 4, 9, 256)], ids=["some", "one group", "bands"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_is_the_convolution(shape: tuple[int, ...], with_bias: bool) -> None:
    assert shape[-1] == 256 or winograd._bands(shape[2], shape[0] * shape[3] // winograd.ACROSS) == [(0, shape[2])]
    drawn = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(size, generator=drawn, dtype=torch.float64, requires_grad=True)
        for size in (shape, (6, shape[1], 3, 3), (6,))
    )
    of = (x, weight, bias) if with_bias else (x, weight)
    expected = F.conv2d(x, weight, bias if with_bias else None, padding=1)
    found = winograd.convolution(x, weight, bias if with_bias else None)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(winograd.convolution(*of, *(() if with_bias else (None,))), found)
    gradient = torch.randn(expected.shape, generator=drawn, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(found, of, gradient), torch.autograd.grad(expected, of, gradient), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_float32_rounds_as_torch_s_convolution_in_the_same_order() -> None:
    """Half as many products are summed up, by factors of up to eight."""
    layer = Convolution3x3(256, 256).requires_grad_(False)
    x = torch.randn(2, 256, 16, 16, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    assert layer.bias is not None and winograd.pays(x, layer.weight)
    exact = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    plain = F.conv2d(x, layer.weight, layer.bias, padding=1)
    ours, theirs = ((y - exact).square().mean().sqrt() / exact.std() for y in (layer(x), plain))
    assert ours < 1.5 * theirs < 2e-6


def test_what_follows_may_add_in_place() -> None:
    layer = Convolution3x3(256, 256)
    x = torch.randn(1, 256, 32, 32, requires_grad=True)
    assert winograd.pays(x, layer.weight)
    layer(x).add_(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is not None
