"""How weights are updated: one file an optimizer. Each keeps averages of the weights in its state, as ZeRO shards that.

Because an average is optimizer state, each rank averages the fragment that it owns, in fp32, and no rank ever holds a
second copy of the model. Every optimizer is elementwise: ZeRO hands it flat pieces of parameters.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from training.checkpoint_files import AVERAGE
from training.ema import DecayRule, WarmedUp

ONE_AVERAGE: Mapping[str, DecayRule] = MappingProxyType({AVERAGE: WarmedUp()})


class Optimizer(torch.optim.Optimizer, ABC):
    """What the engine and checkpoints need of an optimizer.

    averages: the rule of each average of the weights, by the name under which it is kept.
    """

    moments: ClassVar[tuple[str, ...]]
    """What is kept of every parameter besides averages, by name: in a checkpoint, float32 of the parameter's shape."""
    moment_bytes: ClassVar[float]
    """Memory of these for each element of a parameter."""
    averages: dict[str, DecayRule]
    _leave_out: Callable[[], bool] | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is kept of every parameter: the weights, the moments, and the averages."""
        return ("param", *self.moments, *self.averages)

    @abstractmethod
    def update_squares(self, fragments: Iterable[tuple[Mapping[str, Tensor], float]], updates: int) -> Tensor:
        """Sums of squares of the last of so many updates' changes and of the weights: float32 [2].

        fragments: of all parameters, float32 [N] by kind, as they are after it, each with its weight decay.
        """

    @abstractmethod
    def _update(self) -> None:
        """One update of all parameters that have a gradient."""

    def ask_before_steps(self, leave_out: Callable[[], bool]) -> None:
        """From now on `step` changes nothing where `leave_out()` is true: neither weights nor what is kept of them."""
        self._leave_out = leave_out

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update, then the averages'."""
        if self._leave_out is not None and self._leave_out():
            return
        self._update()
        self._average()

    @torch.no_grad()
    def initialise(self, parameters: Iterable[Tensor]) -> None:
        """Creates the state of update 0, so that a checkpoint can be saved or restored before the first step."""
        for parameter in parameters:
            self.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                **self._new_moments(parameter),
                **{name: parameter.detach().clone() for name in self.averages},
            }

    def interval(self, parameter: Tensor, kind: str, start: int, count: int) -> Tensor:
        """`count` elements of one kind from `start` on of a flattened parameter, float32: a live view, or else what it
        is rounded to."""
        held = parameter.detach() if kind == "param" else self.state[parameter][kind]
        return held.view(-1).narrow(0, start, count)

    @contextlib.contextmanager
    def writable(self) -> Iterator[None]:
        """Within it `interval` gives live views of all kinds. Moments that are kept in fewer bits are rounded at its
        end, and take the memory of float32 till then."""
        yield

    @property
    def _device(self) -> torch.device:
        return torch.device(next(iter(self.state)).device)  # under ZeRO 3 groups have parameters within a step only

    def _new_moments(self, parameter: Tensor) -> dict[str, Any]:
        """Of update 0."""
        return {name: torch.zeros_like(parameter) for name in self.moments}

    def _average(self) -> None:
        """average ← decay · average + (1 − decay) · parameter, for each parameter that was updated."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                for name, rule in self.averages.items():
                    # A tensor, as reading it would have the host wait for the GPU.
                    state[name].lerp_(parameter, 1 - rule.at(state["step"]))

    # Torch wraps optimizers' methods so that its compiler leaves them alone, and the wrappers load that compiler, used
    # or not: seconds at each start. These call what is wrapped.
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch."""
        torch.optim.Optimizer.add_param_group.__wrapped__(self, param_group)  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch."""
        torch.optim.Optimizer.zero_grad.__wrapped__(self, set_to_none)  # type: ignore[attr-defined]
