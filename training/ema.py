"""AdamW whose per-parameter state includes the exponential moving average of the weights.

Because the average is optimizer state, ZeRO shards it like Adam's moments: each rank averages the fragment that it
owns, in fp32, and no rank ever holds a second copy of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


def decay_after(updates: int, maximum: float) -> float:
    """Decay at the given update (the first is 1): min(maximum, (1 + n) / (10 + n)), as the published code has it."""
    return min(maximum, (1 + updates) / (10 + updates))


class AdamWithEMA(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter) that keeps `ema` beside `exp_avg` and `exp_avg_sq`.

    parameters: float32 tensors; learning_rate: absolute, per update; ema_decay: the maximum decay, in [0, 1).
    """

    def __init__(
        self,
        parameters: Iterable[torch.Tensor],
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        ema_decay: float = 0.9999,
    ) -> None:
        super().__init__(parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True)
        self.ema_decay = ema_decay

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
                "ema": parameter.detach().clone(),
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
        """One AdamW update, then ema ← decay · ema + (1 − decay) · parameter for each parameter updated."""
        result = torch.optim.Adam.step.__wrapped__(self, closure)  # type: ignore[attr-defined]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                decay = decay_after(int(state["step"].item()), self.ema_decay)
                state["ema"].lerp_(parameter, 1 - decay)
        return result
