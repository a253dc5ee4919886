"""AdamW whose per-parameter state includes moving averages of the weights.

Because an average is optimizer state, ZeRO shards it like Adam's moments: each rank averages the fragment that it
owns, in fp32, and no rank ever holds a second copy of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from training.checkpoint_files import AVERAGE, BASE_KINDS


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


class AdamWithEMA(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter) that keeps averages of the weights beside `exp_avg` and `exp_avg_sq`.

    parameters: float32 tensors; learning_rate: absolute, per update; averages: the rule of each, by the name under
    which it is kept.
    """

    def __init__(
        self,
        parameters: Iterable[torch.Tensor],
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        averages: Mapping[str, DecayRule] = MappingProxyType({AVERAGE: WarmedUp()}),
    ) -> None:
        super().__init__(parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True)
        self.averages = dict(averages)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is kept of every parameter: the weights, Adam's moments, and the averages."""
        return (*BASE_KINDS, *self.averages)

    # Torch wraps optimizers' methods so that its compiler leaves them alone, and the wrappers load that compiler, used
    # or not: seconds at each start. These, and `step`, call what is wrapped.
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch."""
        torch.optim.Optimizer.add_param_group.__wrapped__(self, param_group)  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch."""
        torch.optim.Optimizer.zero_grad.__wrapped__(self, set_to_none)  # type: ignore[attr-defined]

    @torch.no_grad()
    def initialise(self, parameters: Iterable[torch.Tensor]) -> None:
        """Creates the state of update 0, so that a checkpoint can be saved or restored before the first step."""
        for parameter in parameters:
            self.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
                **{name: parameter.detach().clone() for name in self.averages},
            }

    @torch.no_grad()
    def last_change(
        self, parameter: torch.Tensor, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor, updates: int
    ) -> torch.Tensor:
        """By what the last of so many updates changed a parameter, or part of one, given it and its moments as they are
        now (Loshchilov & Hutter 2019, Alg. 2): nothing has to be kept from before."""
        group = self.param_groups[0]
        beta1, beta2 = group["betas"]
        # The decay took its share of the weight as it was before: w = (1 - decay) w_before - moved.
        decay = group["lr"] * group["weight_decay"]
        before = decay / (1 - decay)
        moved = exp_avg_sq.sqrt().mul_((1 - beta2**updates) ** -0.5).add_(group["eps"])
        torch.div(exp_avg, moved, out=moved).mul_(-group["lr"] / (1 - beta1**updates) * (1 + before))
        return moved.add_(parameter, alpha=-before)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One AdamW update, then average ← decay · average + (1 − decay) · parameter for each parameter updated."""
        result = torch.optim.Adam.step.__wrapped__(self, closure)  # type: ignore[attr-defined]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                for name, rule in self.averages.items():
                    # A tensor, as reading it would have the host wait for the GPU.
                    state[name].lerp_(parameter, 1 - rule.at(state["step"]))
        return result
