"""Where each ZeRO stage keeps the fp32 weights and the optimizer's state: this rank's share of them, as fragments.

Reads what DeepSpeed's optimizers hold, and imports none of it: training/engine.py does.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from training.optimizers import Optimizer


class Tensors(Mapping[str, torch.Tensor]):
    """`count` elements of an optimizer's tensor from `start` on, float32 [count] by kind: made when asked for, as some
    are live views and others are kept in fewer bits."""

    def __init__(self, optimizer: Optimizer, master: torch.Tensor, start: int, count: int) -> None:
        self._optimizer = optimizer
        self._interval = (master, start, count)

    def __getitem__(self, kind: str) -> torch.Tensor:
        master, start, count = self._interval
        return self._optimizer.interval(master, kind, start, count)

    def __iter__(self) -> Iterator[str]:
        return iter(self._optimizer.kinds)

    def __len__(self) -> int:
        return len(self._optimizer.kinds)


@dataclass(frozen=True)
class LocalFragment:
    """The interval [start, stop) of a flattened parameter that this rank holds.

    tensors: by kind, to be read; to be written to within `Engine.writable`.
    """

    parameter: str
    shape: list[int]
    start: int
    stop: int
    tensors: Mapping[str, torch.Tensor]
    written_here: bool
    """False for all but one of the ranks that hold the same values (ZeRO 0 replicates them)."""


class LocalState(ABC):
    """This rank's share of the weights and of what the optimizer keeps of them.

    module: what DeepSpeed trains. optimizer: ours, inside of DeepSpeed's. zero: DeepSpeed's. shapes: of every trainable
    parameter by name, taken before ZeRO 3 replaced the parameters' data.
    """

    def __init__(
        self, module: nn.Module, optimizer: Optimizer, zero: Any, shapes: Mapping[str, list[int]], rank: int
    ) -> None:
        self._module = module
        self._optimizer = optimizer
        self._zero = zero
        self._shapes = shapes
        self._rank = rank

    @abstractmethod
    def masters(self) -> list[torch.Tensor]:
        """The fp32 tensors that the optimizer steps: parameters themselves, or their flat partitions."""

    @abstractmethod
    def fragments(self) -> Iterator[LocalFragment]:
        """What this rank holds of every parameter."""

    @abstractmethod
    def link(self) -> None:
        """Has DeepSpeed know the optimizer's state, which is there now."""

    @abstractmethod
    def publish(self) -> None:
        """Makes the module compute with the fp32 weights, after these were written to."""

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trainable parameters."""
        for name, parameter in self._module.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def _fragment(
        self, name: str, start: int, count: int, master: torch.Tensor, offset: int, written_here: bool = True
    ) -> LocalFragment:
        """`count` elements of a parameter from `start` on, which lie in `master` from `offset` on."""
        tensors = Tensors(self._optimizer, master, offset, count)
        return LocalFragment(name, self._shapes[name], start, start + count, tensors, written_here)


class ReplicatedState(LocalState):
    """ZeRO 0: every rank holds everything, and steps the parameters themselves."""

    def masters(self) -> list[torch.Tensor]:
        """See LocalState."""
        return [parameter for _, parameter in self.named()]

    def fragments(self) -> Iterator[LocalFragment]:
        """See LocalState. Each rank writes an equal share of the parameters."""
        world = torch.distributed.get_world_size()
        for index, (name, parameter) in enumerate(self.named()):
            yield self._fragment(name, 0, parameter.numel(), parameter, 0, index % world == self._rank)

    def link(self) -> None:
        """See LocalState. There is nothing of DeepSpeed between."""

    def publish(self) -> None:
        """See LocalState. They are what the module computes with."""


class PartitionedState(LocalState):
    """ZeRO 1 and 2: all parameters in one flat tensor, of which each rank steps its part in fp32."""

    def masters(self) -> list[torch.Tensor]:
        """See LocalState."""
        return list(self._zero.single_partition_of_fp32_groups)

    def fragments(self) -> Iterator[LocalFragment]:
        """See LocalState."""
        for name, parameter in self.named():
            mapping: Any = getattr(parameter, "_hp_mapping", None)
            if mapping is None:
                continue
            inner, outer = mapping.hp_fragment_address, mapping.lp_fragment_address
            master = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
            yield self._fragment(name, outer.start, inner.numel, master, inner.start)

    def link(self) -> None:
        """See LocalState. DeepSpeed does it at its first step; a restore comes before that."""
        self._zero._lazy_init_hp_params_optimizer_state()

    def publish(self) -> None:
        """See LocalState."""
        self._zero.update_lp_params()


class ShardedState(LocalState):
    """ZeRO 3: each parameter is cut into as many shards as there are ranks; a rank's lie in flat tensors."""

    def masters(self) -> list[torch.Tensor]:
        """See LocalState."""
        return list(self._zero.fp32_partitioned_groups_flat)

    def fragments(self) -> Iterator[LocalFragment]:
        """See LocalState."""
        for name, parameter in self.named():
            group, offset, padded = self._zero.grad_position[self._zero.get_param_id(parameter)]
            start = self._rank * padded
            # The last ranks' shards are padded, up to being empty.
            count = min(padded, math.prod(self._shapes[name]) - start)
            if count > 0:
                yield self._fragment(name, start, count, self._zero.fp32_partitioned_groups_flat[group], offset)

    def link(self) -> None:
        """See LocalState. DeepSpeed asks the optimizer itself."""

    def publish(self) -> None:
        """See LocalState."""
        # Small parameters stay gathered between steps: they are split first, and gathered anew afterwards.
        self._zero.checkpoint_event_prologue()
        for index in range(len(self._zero.fp16_groups)):
            self._zero._reassign_or_swap_out_partitioned_parameters(index)
        self._zero.checkpoint_event_epilogue()


LAYOUTS: dict[int, type[LocalState]] = {0: ReplicatedState, 1: PartitionedState, 2: PartitionedState, 3: ShardedState}
"""By ZeRO stage."""
