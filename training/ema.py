"""Moving averages of the weights: how much of one stays at an update. Optimizers keep them (training/optimizers)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class DecayRule(Protocol):
    """How much of an average stays at an update."""

    def at(self, updates: Tensor) -> Tensor:
        """Decay at the given update (the first is 1), in [0, 1]; a float32 scalar on the device of `updates`."""
        ...


@dataclass(frozen=True)
class WarmedUp:
    """min(maximum, (1 + n) / (10 + n)) at update n, as the published code has it."""

    maximum: float = 0.9999

    def __post_init__(self) -> None:
        _check_decay("maximum", self.maximum)

    def at(self, updates: Tensor) -> Tensor:
        """See DecayRule."""
        return ((1 + updates) / (10 + updates)).clamp(max=self.maximum)


@dataclass(frozen=True)
class Fixed:
    """The same decay at every update: an exponential average that begins at the first weights."""

    decay: float

    def __post_init__(self) -> None:
        _check_decay("decay", self.decay)

    def at(self, updates: Tensor) -> Tensor:
        """See DecayRule."""
        return torch.full_like(updates, self.decay)


@dataclass(frozen=True)
class PowerFunction:
    """(1 - 1 / n)^(γ + 1) at update n: the average's window grows with the run (Karras et al. 2024, section 3.1).

    width: the window's standard deviation as a share of the run so far, σ_rel there; above 0, at most 0.28. The first
    weights are forgotten at once.
    """

    width: float

    def __post_init__(self) -> None:
        if not 0 < self.width <= 0.28:
            raise ValueError(f"width is {self.width}; it must be above 0 and at most 0.28")

    @property
    def gamma(self) -> float:
        """The exponent whose window has the width: σ_rel² = (γ + 1) / ((γ + 2)² (γ + 3))."""
        t = self.width**-2
        return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())

    def at(self, updates: Tensor) -> Tensor:
        """See DecayRule."""
        return (1 - 1 / updates) ** (self.gamma + 1)


def _check_decay(name: str, value: float) -> None:
    if not (math.isfinite(value) and 0 <= value < 1):
        raise ValueError(f"{name} is {value}; it must be at least 0 and below 1")
