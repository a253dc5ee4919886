"""What leaves this package: one micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from data.traffic import Traffic

_SMALL_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Fault:
    """A sample that could not be used and was replaced.

    reason: one of data.transforms.REASONS. url: of its shard. number: where in the order it was wanted. detail: more
    about the reason, one line for people.
    """

    reason: str
    url: str
    key: str
    number: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch of one rank.

    images: uint8 [B, 3, H, W], RGB, a pixel's colours side by side in memory (channels-last); [B, 3, 0, 0] where
    samples are latents. moments: of those, what a first stage said of the images, half precision [B, K, h, w]
    (FirstStage.moments); else None.
    inputs: what conditioners read, each [B, ...], by name. captions: B strings, "" where there is none.
    numbers: int64 [B], global sample numbers, to key whatever is random about a sample.
    sources: int64 [B], which source of the mixture each sample is of.
    faults: samples replaced in this batch, in the order of their numbers.
    traffic: what its process read from stores to make it. ready: batches that workers had made when this one was asked
    for, itself among them; 0 where it was waited for, or made by no worker.
    """

    images: Tensor
    inputs: dict[str, Tensor]
    captions: list[str]
    numbers: Tensor
    sources: Tensor
    faults: list[Fault] = field(default_factory=list)
    moments: Tensor | None = None
    traffic: Traffic = field(default_factory=Traffic)
    ready: int = 0

    def __len__(self) -> int:
        return len(self.captions)

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[Any, ...]]:
        """To another process small tensors go by value: by shared memory, each would take a file and four calls of the
        kernel."""
        return _arrived, tuple(_by_value(getattr(self, each.name)) for each in fields(self))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory. torch's DataLoader calls this by name."""
        return replace(
            self,
            images=self.images.pin_memory(),
            moments=None if self.moments is None else self.moments.pin_memory(),
            inputs={name: values.pin_memory() for name, values in self.inputs.items()},
            numbers=self.numbers.pin_memory(),
            sources=self.sources.pin_memory(),
        )


@dataclass(frozen=True, slots=True)
class _Value:
    """A tensor's contents."""

    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    content: bytes

    def tensor(self) -> Tensor:
        """With memory of its own."""
        return torch.frombuffer(bytearray(self.content), dtype=self.dtype).as_strided(self.shape, self.stride)


def _by_value(field: Any) -> Any:
    """A batch's field, with its small tensors as their contents."""
    if isinstance(field, dict):
        return {name: _by_value(value) for name, value in field.items()}
    if isinstance(field, Tensor) and 0 < field.nbytes <= _SMALL_BYTES:
        dense = field.clone()
        content = dense.as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy().tobytes()
        return _Value(field.dtype, field.shape, dense.stride(), content)
    return field


def _arrived(*values: Any) -> Batch:
    """The batch again."""
    return Batch(*map(_whole, values))


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _whole(each) for name, each in value.items()}
    return value.tensor() if isinstance(value, _Value) else value
