"""Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms"): half of Adam's memory for moments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from training.ema import DecayRule
from training.optimizers import ONE_AVERAGE, Optimizer


class Lion(Optimizer):
    """Moves every weight by the learning rate, in the direction of an average of its gradients.

    parameters: float32 tensors; learning_rate: absolute, per update, a third to a tenth of Adam's; betas: how much of
    the average stays in the direction, and in what is kept; weight_decay: as many times Adam's; averages: see
    Optimizer.
    """

    moments = ("exp_avg",)
    moment_bytes = 4.0

    def __init__(
        self,
        parameters: Iterable[Tensor],
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.1,
        averages: Mapping[str, DecayRule] = ONE_AVERAGE,
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate, "betas": tuple(betas), "weight_decay": weight_decay})
        self.averages = dict(averages)

    @torch.no_grad()
    def update_squares(self, fragments: Iterable[tuple[Mapping[str, Tensor], float]], updates: int) -> Tensor:
        """See Optimizer."""
        squares = torch.zeros(2, device=self._device)
        for state in self.state.values():
            squares[0] += state["change_square"]
        for tensors, _ in fragments:
            squares[1] += tensors["param"].dot(tensors["param"])
        return squares

    def _new_moments(self, parameter: Tensor) -> dict[str, Any]:
        return {**super()._new_moments(parameter), "change_square": torch.zeros((), device=parameter.device)}

    def _update(self) -> None:
        """Alg. 2 there."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state, gradient = self.state[parameter], parameter.grad
                state["step"] += 1
                direction = state["exp_avg"].lerp(gradient, 1 - beta1).sign_()
                state["exp_avg"].lerp_(gradient, 1 - beta2)
                direction.add_(parameter, alpha=group["weight_decay"])
                # It can't be told from what is kept, as Adam's can, and costs one reading here.
                state["change_square"] = direction.view(-1).dot(direction.view(-1)) * group["lr"] ** 2
                parameter.add_(direction, alpha=-group["lr"])
