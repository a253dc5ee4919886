"""AdamW (Loshchilov & Hutter 2019): what the paper's diffusion models are trained with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from training.ema import DecayRule
from training.optimizers import ONE_AVERAGE, Optimizer


class AdamW(Optimizer, torch.optim.AdamW):
    """Torch's fused AdamW, with averages of the weights beside its moments.

    parameters: float32 tensors; learning_rate: absolute, per update; averages: see Optimizer.
    """

    moments = ("exp_avg", "exp_avg_sq")
    moment_bytes = 8.0

    def __init__(
        self,
        parameters: Iterable[Tensor],
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        averages: Mapping[str, DecayRule] = ONE_AVERAGE,
    ) -> None:
        super().__init__(
            parameters, lr=learning_rate, betas=(betas[0], betas[1]), weight_decay=weight_decay, fused=True
        )
        self.averages = dict(averages)

    @torch.no_grad()
    def update_squares(self, fragments: Iterable[tuple[Mapping[str, Tensor], float]], updates: int) -> Tensor:
        """See Optimizer."""
        squares = torch.zeros(2, device=self._device)
        for tensors, weight_decay in fragments:
            weight = tensors["param"]
            change = self._last_change(weight, tensors["exp_avg"], tensors["exp_avg_sq"], updates, weight_decay)
            squares += torch.stack([change.dot(change), weight.dot(weight)])
        return squares

    def _update(self) -> None:
        torch.optim.Adam.step.__wrapped__(self)  # type: ignore[attr-defined]

    def _last_change(
        self, weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, updates: int, weight_decay: float
    ) -> Tensor:
        """By what the last of so many updates changed a parameter, or part of one, given it and its moments as they are
        now (Loshchilov & Hutter 2019, Alg. 2): nothing has to be kept from before."""
        group = self.param_groups[0]
        beta1, beta2 = group["betas"]
        # The decay took its share of the weight as it was before: w = (1 - decay) w_before - moved.
        decay = group["lr"] * weight_decay
        before = decay / (1 - decay)
        moved = exp_avg_sq.sqrt().mul_((1 - beta2**updates) ** -0.5).add_(group["eps"])
        torch.div(exp_avg, moved, out=moved).mul_(-group["lr"] / (1 - beta1**updates) * (1 + before))
        return moved.add_(weight, alpha=-before)
