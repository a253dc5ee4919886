"""FLOPs and live bytes of whatever runs on the meta device: operations happen there in shapes alone."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_backward


class Counter(TorchDispatchMode):
    """Within it, `flops` are added up and `live_bytes` is what tensors made within it hold now; `peak_bytes`, at most.

    Only matrix products, convolutions and attention count as FLOPs, a multiplication and an addition as two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.live_bytes = 0
        self.peak_bytes = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """These were there before: operations that return them make nothing."""
        for tensor in tensors:
            self._note(tensor, counts=False)

    def restart_peak(self) -> int:
        """The peak since the last call."""
        peak, self.peak_bytes = self.peak_bytes, self.live_bytes
        return peak

    def __torch_dispatch__(
        self,
        function: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        packet = function._overloadpacket
        if packet in flop_registry:
            flops = flop_registry[packet](*args, **kwargs, out_val=result)
            # Registered with five products, one of which computes the weights of the forward pass once more.
            self.flops += flops * 4 // 5 if packet is FLASH_BACKWARD else flops
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._note(tensor, counts=True)
        return result

    def _note(self, tensor: Tensor, counts: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if counts else 0

        def forget(_: object) -> None:
            self.live_bytes -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, forget)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


def fused_attention() -> contextlib.AbstractContextManager[object]:
    """Within it attention is the kernel of GPUs, which keeps no weights for the backward pass; meta tensors' does.

    Put in the function's place, as a mode would not be seen by what activation checkpointing computes anew.
    """

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    return mock.patch.object(F, "scaled_dot_product_attention", attention)


@dataclass(frozen=True)
class Moment:
    """Between two gradients of a backward pass: the most that lives beside weights and gradients, in bytes; and the
    elements of gradients that are finished by then."""

    activation_bytes: float
    gradients_done: int


@dataclass(frozen=True)
class Pass:
    """A forward pass and, where there is one, its backward pass. FLOPs are of the whole micro-batch."""

    forward_flops: float
    backward_flops: float
    moments: tuple[Moment, ...]

    @property
    def activation_bytes(self) -> float:
        """The most that lives beside weights and gradients."""
        return max(moment.activation_bytes for moment in self.moments)


def count_training(module: nn.Module, loss: Callable[[], Tensor]) -> Pass:
    """Counts `loss`, which runs the module and returns a scalar, and its backward pass. All on the meta device."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    moments: list[Moment] = []
    done = 0
    with fused_attention(), Counter() as counter:
        counter.ignore(list(module.parameters()))
        hooks = []

        def finished(parameter: Tensor) -> None:
            nonlocal done
            moments.append(Moment(counter.restart_peak(), done))
            done += parameter.numel()
            parameter.grad = None  # what becomes of gradients is the ZeRO stage's business, and not counted here
            counter.restart_peak()

        for parameter in parameters:
            hooks.append(parameter.register_post_accumulate_grad_hook(finished))
        value = loss()
        forward = counter.flops
        value.backward()
        for hook in hooks:
            hook.remove()
    return Pass(forward, counter.flops - forward, tuple(moments))


def count_inference(module: nn.Module, run: Callable[[], Any]) -> Pass:
    """Counts `run`, which runs the module without a gradient. All on the meta device."""
    with torch.no_grad(), fused_attention(), Counter() as counter:
        counter.ignore([*module.parameters(), *module.buffers()])
        run()
    return Pass(counter.flops, 0, (Moment(counter.peak_bytes, 0),))


def extrapolated(one: Pass, two: Pass, micro_batch: int) -> Pass:
    """The pass of a micro-batch, from those of one and of two samples: all parts are a constant plus so much each."""

    def line(a: float, b: float) -> float:
        return a + (b - a) * (micro_batch - 1)

    moments = tuple(
        Moment(line(a.activation_bytes, b.activation_bytes), a.gradients_done)
        for a, b in zip(one.moments, two.moments, strict=True)
    )
    return Pass(line(one.forward_flops, two.forward_flops), line(one.backward_flops, two.backward_flops), moments)
