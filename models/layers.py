"""Linear layers and 3 x 3 convolutions that choose the kernels which measure fastest in float32 on CPUs.

They are nn.Linear and nn.Conv2d in every other case, and in names, shapes and initial values of their parameters
always. Results are equal to rounding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models import winograd


def float32_on_cpu(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's kernels are there and are meant to be called by hand."""
    return (
        not torch.compiler.is_compiling()  # first, as torch.compile can't follow what comes then
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias by oneDNN: [..., in], [out, in] -> [..., out]. MKL, which nn.Linear calls, is up to a third
    slower on processors of another maker, and no faster on its own."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """`product` with its gradients. Saves the parameter itself: ZeRO 3 replaces its data between the passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])  # [N, out]
        of_x = product(gradient, weight.t(), None) if ctx.needs_input_grad[0] else None
        # MKL is the faster one where both factors are transposed.
        of_weight = rows.t() @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, rows.sum(0) if ctx.needs_input_grad[2] else None


class Linear(nn.Linear):
    """nn.Linear: float [..., in] -> [..., out]."""

    def forward(self, x: Tensor) -> Tensor:
        if not float32_on_cpu(x, self.weight):
            return super().forward(x)
        if torch.is_grad_enabled():
            return _Linear.apply(x, self.weight, self.bias)
        return product(x, self.weight, self.bias)


class _ConvolutionOfFewPositions(torch.autograd.Function):
    """A 3 x 3 convolution, padded by 1, whose weight's gradient is one matrix product over all positions.

    oneDNN divides that gradient's work by positions; where there are few, it takes two to four times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            settings = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False])
            of_x, _, _ = torch.ops.aten.convolution_backward(gradient, x, weight, *settings)
        if ctx.needs_input_grad[1]:
            patches = F.unfold(x, 3, padding=1).transpose(0, 1).flatten(1)  # [in * 9, B * H * W]
            rows = gradient.transpose(0, 1).flatten(1)  # [out, B * H * W]
            of_weight = product(rows, patches, None).view(weight.shape)  # [out, in, 3, 3]
        return of_x, of_weight, gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None


class Convolution3x3(nn.Conv2d):
    """nn.Conv2d with a kernel of 3 and a padding of 1: float [B, in, H, W] -> [B, out, H, W].

    In float32 on CPUs it computes in channels_last order, unless the feature map has fewer positions than channels:
    then bringing the weights into that order would cost more than it saves. Where `winograd` pays, it takes half the
    multiplications.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if not float32_on_cpu(x, self.weight):
            return super().forward(x)
        if not self.has_few_positions(x):
            x = x.contiguous(memory_format=torch.channels_last)
            if winograd.pays(x, self.weight):
                return winograd.convolution(x, self.weight, self.bias)
            return super().forward(x)
        x = x.contiguous()
        if torch.is_grad_enabled():
            return _ConvolutionOfFewPositions.apply(x, self.weight, self.bias)
        return super().forward(x)

    def has_few_positions(self, x: Tensor) -> bool:
        """Whether x [B, in, H, W] has fewer positions, over all samples, than the output has channels."""
        return x.numel() // self.in_channels < self.out_channels


class UpsamplingConvolution(Convolution3x3):
    """Nearest neighbour, then a 3 x 3 convolution: float [B, C, H, W] -> [B, C_out, 2H, 2W].

    In float32 on CPUs without the enlarged map: a position of the output sees 2 x 2 positions of x, some of them
    through two or four of the kernel's weights, which are added up first. That takes 4/9 of the multiplications.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.has_few_positions(x) or not float32_on_cpu(x, self.weight):
            return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        batch, _, height, width = x.shape
        kernels = _kernels_of_phases(self.weight)  # [4 * C_out, C, 2, 2]
        x = x.contiguous(memory_format=torch.channels_last)
        bias = None if self.bias is None else self.bias.repeat(4)
        h = F.conv2d(x, kernels, bias, padding=1)  # [B, 4 * C_out, H+1, W+1]
        h = h.view(batch, 2, 2, self.out_channels, height + 1, width + 1)
        # An even row of the output begins one position before its own, an odd row with it; columns alike.
        rows = [torch.stack([h[:, p, q, :, p : p + height, q : q + width] for q in (0, 1)], -1) for p in (0, 1)]
        return torch.stack(rows, 3).view(batch, self.out_channels, 2 * height, 2 * width)


def _kernels_of_phases(weight: Tensor) -> Tensor:
    """What 3 x 3 kernels are to the map before its enlargement, for even and odd rows and columns of the output.

    [out, in, 3, 3] -> [4 * out, in, 2, 2], the phases in the order (even, even), (even, odd), (odd, even), (odd, odd).
    """
    to_phases = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # [phase, tap, row of the kernel]
    both = torch.einsum("pra,qsb->pqrsab", to_phases, to_phases).reshape(16, 9)
    flat = weight.reshape(-1, 9) @ both.t()  # [out * in, 16]
    return flat.view(*weight.shape[:2], 4, 2, 2).permute(2, 0, 1, 3, 4).flatten(0, 1)
