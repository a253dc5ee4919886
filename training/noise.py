"""Random numbers that belong to a sample, not to a rank: drawn from generators keyed by (seed, sample number)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


def key(seed: int, purpose: str, number: int) -> int:
    """A 63-bit generator seed for one purpose of one sample; different purposes are independent."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, purpose: str, number: int) -> torch.Generator:
    """A CPU generator for one purpose of one sample, on every kind of device the same numbers."""
    return torch.Generator().manual_seed(key(seed, purpose, number))


def normal(seed: int, purpose: str, numbers: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """Standard normal noise, float32 [len(numbers), *shape], one generator a sample."""
    return torch.stack([torch.randn(*shape, generator=generator(seed, purpose, n)) for n in numbers])


def integers(seed: int, purpose: str, numbers: Sequence[int], high: int) -> torch.Tensor:
    """Uniform integers in [0, high), int64 [len(numbers)]."""
    return torch.tensor([key(seed, purpose, n) % high for n in numbers])


def chances(seed: int, purpose: str, numbers: Sequence[int], probability: float) -> torch.Tensor:
    """True with the given probability, bool [len(numbers)]."""
    return torch.tensor([key(seed, purpose, n) < probability * 2**63 for n in numbers])
