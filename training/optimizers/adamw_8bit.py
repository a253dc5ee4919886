"""AdamW that keeps its moments in eight bits (Dettmers et al. 2022): a quarter of their memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from training.optimizers.adamw import AdamW
from training.optimizers.quantised import BLOCK, BYTES, Quantised

CHUNK = 2**14 * BLOCK
"""Elements whose moments are float32 at a time."""


class AdamW8bit(AdamW):
    """AdamW, of which moments are rounded blockwise after each update. Settings: see AdamW.

    Blocks begin where the tensors begin that ZeRO hands over, so they lie differently for another stage or number of
    ranks. Checkpoints therefore hold float32 moments, and can be AdamW's as well: what was saved by the same ranks is
    rounded to the same bits again, by others to nearby ones.
    """

    moment_bytes = 2 * BYTES

    def interval(self, parameter: Tensor, kind: str, start: int, count: int) -> Tensor:
        """See Optimizer."""
        held = self.state[parameter].get(kind)
        if isinstance(held, Quantised):
            return held.read(start, count)
        return super().interval(parameter, kind, start, count)

    @contextlib.contextmanager
    def writable(self) -> Iterator[None]:
        """See Optimizer."""
        rounded = [
            (state, kind, state[kind])
            for state in self.state.values()
            for kind in self.moments
            if isinstance(state[kind], Quantised)
        ]
        for state, kind, moment in rounded:
            state[kind] = moment.read(0, len(moment.codes))
        yield
        for state, kind, moment in rounded:
            for start in range(0, len(moment.codes), CHUNK):
                moment.write(start, state[kind][start : start + CHUNK])
            state[kind] = moment

    def _new_moments(self, parameter: Tensor) -> dict[str, Any]:
        return {
            "exp_avg": Quantised(parameter.numel(), signed=True, device=parameter.device),
            "exp_avg_sq": Quantised(parameter.numel(), signed=False, device=parameter.device),
        }

    def _update(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update_one(parameter, parameter.grad, group)

    def _update_one(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Loshchilov & Hutter 2019, Alg. 2, on flat pieces."""
        beta1, beta2 = group["betas"]
        state = self.state[parameter]
        state["step"] += 1
        # Tensors, as reading the step would have the host wait for the GPU.
        rate = group["lr"] / (1 - beta1 ** state["step"])
        root = (1 - beta2 ** state["step"]).sqrt()
        for start in range(0, parameter.numel(), CHUNK):
            weights, gradients = (whole.view(-1)[start : start + CHUNK] for whole in (parameter, gradient))
            mean, square = (state[kind].read(start, len(weights)) for kind in self.moments)
            mean.lerp_(gradients, 1 - beta1)
            square.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
            weights.mul_(1 - group["lr"] * group["weight_decay"])
            weights.sub_(mean / square.sqrt().div_(root).add_(group["eps"]) * rate)
            state["exp_avg"].write(start, mean)
            state["exp_avg_sq"].write(start, square)
