"""Activation checkpointing (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"), by named blocks."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class ActivationCheckpointing:
    """Runs the blocks of a model. Of those that are chosen it keeps only what enters them, and computes them once more
    when their gradient is needed: less memory, the time of their forward pass more.

    choice: True for every block, a list of names for some; None, False or an empty list for none. A name is that of a
    block, or of a module that has several: "down" is "down.0", "down.1" and so on. blocks: the names of all.
    Raises ValueError for other names.
    """

    def __init__(self, choice: bool | Sequence[str] | None, blocks: Iterable[str]) -> None:
        blocks = list(blocks)
        names = blocks if choice is True else choice or []
        if isinstance(names, str):
            raise ValueError(f"activation_checkpointing={names}: give true, null, or a list of names such as [{names}]")
        for name in names:
            if not any(_within(block, name) for block in blocks):
                raise ValueError(
                    f"activation_checkpointing has {name}, and there is no such block; choose true, or some of "
                    f"{', '.join(dict.fromkeys(part for block in blocks for part in _enclosing(block)))}"
                )
        self.chosen = frozenset(block for block in blocks if any(_within(block, name) for name in names))

    def within(self, name: str) -> "ActivationCheckpointing":
        """That of a module's own blocks, whose names are without the module's."""
        blocks = [block.removeprefix(f"{name}.") for block in self.chosen if _within(block, name)]
        return ActivationCheckpointing(True, blocks)

    def run(self, name: str, block: nn.Module, *inputs: Any) -> Any:
        """What the block of this name makes of the inputs."""
        if name in self.chosen and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


def numbered(name: str, modules: nn.ModuleList) -> list[str]:
    """The names of a list's modules: "name.0", "name.1" and so on."""
    return [f"{name}.{number}" for number in range(len(modules))]


def _within(block: str, name: str) -> bool:
    return f"{block}.".startswith(f"{name}.")


def _enclosing(block: str) -> list[str]:
    """The names that mean the block: "encoder.levels.0" is within "encoder" and "encoder.levels"."""
    parts = block.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]
