"""3 x 3 convolutions with half the multiplications (Lavin and Gray 2015, "Fast Algorithms for Convolutional Neural
Networks", F(4, 3) along the rows).

Four neighbours y of a row follow from six products instead of twelve: y = A.T [(G w) * (B.T x)], where x are the six
neighbours that they see, and w is a row of the kernel. B.T x is sums of feature maps; the products over channels and
the kernel's three rows are products of matrices, and nearly all of the work. So it is for both gradients: the input's
is a convolution with the mirrored kernel, the weight's is G.T [(A y') * (B.T x)], summed over positions.

Maps lie in memory as [rows, images, columns, channels] here: then the rows that a kernel's row sees are an interval.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

ACROSS = 4
"""Columns that are computed together: a map's width is divisible by it."""
PRODUCTS = 6
"""For as many columns."""
POSITIONS = 1024
"""Groups of columns that are worked on at a time: few enough that what is computed of them stays in the cache."""
LEAST_CHANNELS = 128, 256
"""On the narrower side, in or out, and on the wider: with fewer, sums of maps take the time that products save."""
LEAST_MULTIPLICATIONS = 9 * 2**25
"""With fewer, forty small operations take longer than one."""

_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolution` is the faster way for a map [B, C, H, W] and a kernel [C_out, C, 3, 3], where there are at
    least as many positions as channels to come out."""
    narrower, wider = sorted(weight.shape[:2])
    is_wide = narrower >= LEAST_CHANNELS[0] and wider >= LEAST_CHANNELS[1]
    return is_wide and x.numel() * len(weight) * 9 >= LEAST_MULTIPLICATIONS and x.shape[-1] % ACROSS == 0


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3 x 3 convolution, padded by 1: float [B, C, H, W], [C_out, C, 3, 3], [C_out] -> [B, C_out, H, W] in
    channels_last order. W is divisible by 4."""
    if torch.is_grad_enabled():
        result: Tensor = _Convolution.apply(x, weight, bias)
        return result
    return _convolved(x, _kernels(weight), bias)


class _Convolution(torch.autograd.Function):
    """Saves the parameter itself: ZeRO 3 replaces its data between the passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolved(x, _kernels(weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x = _convolved(gradient, _mirrored_kernels(weight), None) if ctx.needs_input_grad[0] else None
        of_weight = _gradient_of_weight(x, gradient) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None


def _transform(like: Tensor, mirrored: bool) -> Tensor:
    """What makes the kernels of products out of the nine weights of a kernel: [6 * 3, 9]."""
    rows = like.new_tensor(_G)  # [6, 3]
    identity = torch.eye(3, dtype=like.dtype, device=like.device)
    if mirrored:
        rows, identity = rows.flip(1), identity.flip(1)
    return torch.einsum("fk,rs->frsk", rows, identity).reshape(PRODUCTS * 3, 9)


def _kernels(weight: Tensor) -> Tensor:
    """[C_out, C, 3, 3] -> [6, 3, C, C_out], for each product and row of the kernel."""
    flat = weight.reshape(-1, 9).t()  # [9, C_out * C]
    return (_transform(weight, mirrored=False) @ flat).view(PRODUCTS, 3, *weight.shape[:2]).transpose(2, 3)


def _mirrored_kernels(weight: Tensor) -> Tensor:
    """[C_out, C, 3, 3] -> [6, 3, C_out, C]: those of the convolution that brings gradients back."""
    flat = weight.reshape(-1, 9).t()  # [9, C_out * C]
    return (_transform(weight, mirrored=True) @ flat).view(PRODUCTS, 3, *weight.shape[:2])


def _by_rows(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [H, B, W, C], a view of x."""
    return x.permute(2, 0, 3, 1)


def _bands(height: int, groups: int) -> list[tuple[int, int]]:
    """Intervals of rows, of which one has `groups` groups of columns."""
    rows = max(1, POSITIONS // groups)
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


def _convolved(x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    """x [B, C, H, W], kernels [6, 3, C, C_out] -> [B, C_out, H, W]."""
    batch, _, height, width = x.shape
    across = width // ACROSS
    shape = (batch, kernels.shape[-1], height, width)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    grouped = y.permute(0, 2, 3, 1).view(batch, height, across, ACROSS, -1)
    for top, bottom in _bands(height, batch * across):
        transformed = _inputs(x, top, bottom)  # [6, rows + 2, B, W / 4, C]
        _outputs(_products(transformed, kernels), bias, grouped[:, top:bottom])
    return y


def _inputs(x: Tensor, top: int, bottom: int) -> Tensor:
    """B.T x for the rows [top, bottom) of [B, C, H, W], and the one on either side: [6, rows + 2, B, W / 4, C]."""
    batch, channels, height, width = x.shape
    seen = _by_rows(x)[max(0, top - 1) : bottom + 1]
    padded = F.pad(seen, (0, 0, 1, 1, 0, 0, int(top == 0), int(bottom == height)))  # [rows + 2, B, W + 2, C]
    x_0, x_1, x_2, x_3, x_4, x_5 = (padded[:, :, k : k + width - 3 : ACROSS] for k in range(PRODUCTS))
    v = x.new_empty(PRODUCTS, bottom - top + 2, batch, width // ACROSS, channels)
    torch.sub(x_4, x_2, alpha=5, out=v[0]).add_(x_0, alpha=4)
    torch.sub(x_5, x_3, alpha=5, out=v[5]).add_(x_1, alpha=4)
    even, odd = torch.sub(x_4, x_2, alpha=4), torch.sub(x_3, x_1, alpha=4)
    torch.add(even, odd, out=v[1])
    torch.sub(even, odd, out=v[2])
    torch.sub(x_4, x_2, out=even)
    torch.sub(x_3, x_1, out=odd)
    torch.add(even, odd, alpha=2, out=v[3])
    torch.sub(even, odd, alpha=2, out=v[4])
    return v


def _rows_seen(transformed: Tensor) -> tuple[Tensor, ...]:
    """For each of the kernel's rows what it sees: [6, rows + 2, B, W / 4, C] -> three of [6, rows * B * W / 4, C]."""
    rows = transformed.shape[1] - 2
    return tuple(transformed[:, r : r + rows].flatten(1, 3) for r in range(3))


def _products(transformed: Tensor, kernels: Tensor) -> Tensor:
    """Sums over channels and the kernel's rows: [6, rows + 2, B, W / 4, C] -> [6, rows, B, W / 4, C_out]."""
    first, second, third = _rows_seen(transformed)
    m = torch.bmm(first, kernels[:, 0])
    m.baddbmm_(second, kernels[:, 1])
    m.baddbmm_(third, kernels[:, 2])
    _, rows, batch, across, _ = transformed.shape
    return m.view(PRODUCTS, rows - 2, batch, across, -1)


def _outputs(m: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """Writes A.T m, and the bias, to y [B, rows, W / 4, 4, C_out]. m [6, rows, B, W / 4, C_out] is used up."""
    y_0, y_1, y_2, y_3 = y.transpose(0, 1).unbind(3)  # each [rows, B, W / 4, C_out]
    sum_1, difference_1 = m[1] + m[2], m[1].sub_(m[2])
    sum_3, difference_3 = m[3] + m[4], m[3].sub_(m[4])
    if bias is not None:
        sum_1 += bias
        difference_1 += bias
    torch.add(m[0].add_(sum_1), sum_3, out=y_0)
    torch.add(difference_1, difference_3, alpha=2, out=y_1)
    torch.add(sum_1, sum_3, alpha=4, out=y_2)
    torch.add(m[5].add_(difference_1), difference_3, alpha=8, out=y_3)


def _gradient_of_weight(x: Tensor, gradient: Tensor) -> Tensor:
    """x [B, C, H, W], gradient [B, C_out, H, W] -> [C_out, C, 3, 3]."""
    batch, channels, height, width = x.shape
    out_channels = gradient.shape[1]
    of_kernels = x.new_zeros(PRODUCTS, 3, out_channels, channels)
    for top, bottom in _bands(height, batch * width // ACROSS):
        of_products = _gradient_of_products(gradient, top, bottom).transpose(1, 2)  # [6, C_out, rows * B * W / 4]
        for r, seen in enumerate(_rows_seen(_inputs(x, top, bottom))):
            of_kernels[:, r].baddbmm_(of_products, seen)
    flat = of_kernels.view(PRODUCTS * 3, -1).t() @ _transform(x, mirrored=False)  # [C_out * C, 9]
    return flat.view(out_channels, channels, 3, 3)


def _gradient_of_products(gradient: Tensor, top: int, bottom: int) -> Tensor:
    """A y' for the rows [top, bottom) of [B, C_out, H, W]: [6, rows * B * W / 4, C_out]."""
    rows = _by_rows(gradient)[top:bottom]  # [rows, B, W, C_out]
    g_0, g_1, g_2, g_3 = (rows[:, :, k::ACROSS] for k in range(ACROSS))
    m = gradient.new_empty(PRODUCTS, *g_0.shape)
    m[0].copy_(g_0)
    m[5].copy_(g_3)
    even, odd = g_0 + g_2, g_1 + g_3
    torch.add(even, odd, out=m[1])
    torch.sub(even, odd, out=m[2])
    torch.add(g_0, g_2, alpha=4, out=even)
    torch.add(g_1, g_3, alpha=4, out=odd)
    torch.add(even, odd, alpha=2, out=m[3])
    torch.sub(even, odd, alpha=2, out=m[4])
    return m.flatten(1, 3)
