"""Layers with kernels of their own compute what nn.Linear and nn.Conv2d do, forwards and backwards."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import Convolution3x3, Linear, UpsamplingConvolution

FEW, MANY = (2, 32, 4, 4), (4, 32, 8, 6)
"""Feature maps with fewer and with more positions than the layers' 48 output channels."""


def same(layer: nn.Module, plain: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Asserts that outputs and gradients agree, with a gradient to come and without."""
    x.requires_grad_()
    found, expected = layer(x), plain(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    of = [x, *layer.parameters()]
    gradient = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, of, gradient), torch.autograd.grad(expected, of, gradient), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_is_nn_linear(bias: bool, dtype: torch.dtype) -> None:
    layer = Linear(24, 40, bias=bias).to(dtype)
    same(layer, lambda x: F.linear(x, layer.weight, layer.bias), torch.randn(3, 7, 24, dtype=dtype))
    transposed = torch.randn(3, 24, 7, dtype=dtype).transpose(1, 2)
    same(layer, lambda x: F.linear(x, layer.weight, layer.bias), transposed)


@pytest.mark.parametrize("shape", [FEW, MANY])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_convolution_is_nn_conv2d(shape: tuple[int, ...], order: torch.memory_format) -> None:
    layer = Convolution3x3(32, 48)
    x = torch.randn(shape).contiguous(memory_format=order)
    same(layer, lambda x: F.conv2d(x, layer.weight, layer.bias, padding=1), x)


@pytest.mark.parametrize("shape", [FEW, MANY])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_upsampling_convolution_is_the_two_in_turn(shape: tuple[int, ...], order: torch.memory_format) -> None:
    layer = UpsamplingConvolution(32, 48)
    x = torch.randn(shape).contiguous(memory_format=order)
    same(layer, lambda x: F.conv2d(F.interpolate(x, scale_factor=2.0), layer.weight, layer.bias, padding=1), x)


@pytest.mark.parametrize("layer", [Linear(8, 8), Convolution3x3(8, 64)])
def test_frozen_weights_take_no_gradient(layer: nn.Module) -> None:
    layer.requires_grad_(False)
    x = torch.randn(2, 8, 4, 8, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and x.grad.any()
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_names_and_first_values_are_those_of_torch() -> None:
    for ours, theirs in ((Linear, nn.Linear), (Convolution3x3, lambda a, b: nn.Conv2d(a, b, 3))):
        torch.manual_seed(0)
        found = ours(6, 10).state_dict()
        torch.manual_seed(0)
        expected = theirs(6, 10).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
