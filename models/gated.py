"""A linear layer of a gated input (GEGLU), which keeps that input alone for its gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.layers import Linear, float32_on_cpu, product


class GatedLinear(Linear):
    """A linear layer of the first half of the input times the GELU of the second: float [..., 2 * in] -> [..., out]."""

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and x.dtype == self.weight.dtype and not casts:
            return _GatedLinear.apply(x, self.weight, self.bias)
        value, gate = x.chunk(2, dim=-1)
        return super().forward(F.gelu(gate) * value)


class _GatedLinear(torch.autograd.Function):
    """Computes the gated values once more for the gradient, where GELU is needed anyway. Saves the parameter itself:
    ZeRO 3 replaces its data between the passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        value, gate = x.chunk(2, dim=-1)
        return _linear(F.gelu(gate).mul_(value), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        value, gate = x.chunk(2, dim=-1)
        rows = gradient.reshape(-1, gradient.shape[-1])  # [N, out]
        of_gated = _linear(gradient, weight.t(), None)
        of_x = torch.empty_like(x)
        of_value, of_gate = of_x.chunk(2, dim=-1)
        activated = F.gelu(gate)
        torch.mul(of_gated, activated, out=of_value)
        of_gate.copy_(torch.ops.aten.gelu_backward(of_gated.mul_(value), gate))
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = rows.t() @ activated.mul_(value).reshape(-1, weight.shape[1])
        return of_x, of_weight, rows.sum(0) if ctx.needs_input_grad[2] else None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return product(x, weight, bias) if float32_on_cpu(x, weight) else F.linear(x, weight, bias)
