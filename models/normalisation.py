"""Group normalisation as the published networks have it, and for narrower ones."""

from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """GroupNorm with 32 groups, as published, or with up to 4 where 32 doesn't divide the width.

    A group of one channel erases whatever is added evenly over space, such as a time embedding: so narrow
    layers get few groups. At a width of exactly 32 the published rule does have that effect.
    """
    return nn.GroupNorm(32 if channels % 32 == 0 else gcd(4, channels), channels, eps=eps)


class _NormalisedSiLU(torch.autograd.Function):
    """SiLU of a group normalisation that keeps x alone for its gradients, and normalises once more when asked for them.

    The two layers on their own would keep what lies between them too. Saves the parameters themselves: ZeRO 3 replaces
    their data between the passes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        y, mean, deviation = _normalise(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, deviation)
        ctx.groups, ctx.eps = groups, eps
        return F.silu(y, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight, bias, mean, deviation = ctx.saved_tensors
        y, _, _ = _normalise(x, weight, bias, ctx.groups, ctx.eps)
        order = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        of_y = torch.ops.aten.silu_backward(gradient, y).contiguous(memory_format=order)
        sizes = (len(x), x.shape[1], x.shape[2] * x.shape[3])
        return (
            *torch.ops.aten.native_group_norm_backward(
                of_y, x, mean, deviation, weight, *sizes, ctx.groups, list(ctx.needs_input_grad[:3])
            ),
            None,
            None,
        )


def _normalise(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Group normalisation of x [B, C, H, W], and each group's mean and inverse deviation [B, groups]."""
    sizes = (len(x), x.shape[1], x.shape[2] * x.shape[3])
    return torch.ops.aten.native_group_norm(x, weight, bias, *sizes, groups, eps)


def normalised_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """SiLU of norm(x), float [B, C, H, W] -> same. Of what lies between the two, nothing is kept."""
    if not torch.is_grad_enabled():
        return F.silu(norm(x), inplace=True)
    if torch.compiler.is_compiling() or _autocast(x) or x.dtype != norm.weight.dtype:
        return F.silu(norm(x))
    in_order = x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)
    return _NormalisedSiLU.apply(x if in_order else x.contiguous(), norm.weight, norm.bias, norm.num_groups, norm.eps)


def _autocast(x: Tensor) -> bool:
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)
