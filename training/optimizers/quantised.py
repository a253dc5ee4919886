"""Tensors of which every element takes eight bits (Dettmers et al. 2022, "8-bit Optimizers via Block-wise
Quantization")."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

BLOCK = 256
"""Elements that share a scale. The paper has 2,048; of fewer, one large element spoils fewer others."""
BYTES = 1 + 4 / BLOCK
"""Of memory for an element."""


@functools.cache
def code_values(signed: bool, device: torch.device) -> Tensor:
    """What the codes stand for, in units of their block's scale, ascending: float32 [255].

    Decades share out the bits (the paper's dynamic tree quantization, Sec. 1.3): the i-th has 2^i even steps. Unlike
    there, a value is the upper end of its step, and so the largest is 1: a block's largest element is kept exactly, and
    what was read is written as the same codes again. Without a sign there is no 0, but in blocks of nothing else: a
    second moment that is rounded to nothing would make an update without bounds.
    """
    decades = 7 if signed else 8
    values = [
        10.0 ** (decade - decades + 1) * (0.1 + 0.9 * (step + 1) / 2**decade)
        for decade in range(decades)
        for step in range(2**decade)
    ]
    if signed:
        values = [-value for value in reversed(values)] + [0.0] + values
    return torch.tensor(values, dtype=torch.float32, device=device)


@functools.cache
def boundaries(signed: bool, device: torch.device) -> Tensor:
    """Half-way between neighbouring values, float32 [254]."""
    values = code_values(signed, device)
    return (values[1:] + values[:-1]) / 2


class Quantised:
    """N elements, of which each block of BLOCK has a scale of its own, float32: its largest magnitude.

    signed: False for elements that are never below 0. It begins as zeros.
    """

    def __init__(self, elements: int, signed: bool, device: torch.device) -> None:
        self.signed = signed
        zero = 127 if signed else 0
        self.codes = torch.full((elements,), zero, dtype=torch.uint8, device=device)
        self.scales = torch.zeros(-(-elements // BLOCK), device=device)

    def read(self, start: int, count: int) -> Tensor:
        """Elements [start, start + count), float32."""
        first = start // BLOCK  # whose block may have begun before
        values = code_values(self.signed, self.codes.device)[self.codes[first * BLOCK : start + count].int()]
        scales = self.scales[first : -(-(start + count) // BLOCK)]
        values *= scales.repeat_interleave(BLOCK)[: len(values)]
        return values[start - first * BLOCK :]

    def write(self, start: int, values: Tensor) -> None:
        """Rounds `values`, float32 [n], to what elements [start, start + n) can be: whole blocks, but at the end."""
        blocks = torch.nn.functional.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
        scales = blocks.abs().amax(1)
        self.scales[start // BLOCK :][: len(scales)] = scales
        shares = blocks / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        codes = torch.bucketize(shares, boundaries(self.signed, values.device), out_int32=True)
        self.codes[start : start + len(values)] = codes.view(-1)[: len(values)].to(torch.uint8)
