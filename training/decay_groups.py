"""Which parameters the weight decay spares."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)
KINDS = ("bias", "norm", "embedding")
"""What may be spared by its kind: biases of every layer, weights and biases of normalisations, tables of embeddings."""


def spared(module: nn.Module, no_decay: Sequence[str]) -> set[str]:
    """Names of the trainable parameters that no_decay spares: of each of KINDS in it, or that fit one of the patterns
    in it, such as 'conditioners.*'."""
    return {
        name
        for path, part in module.named_modules()
        for name, parameter in part.named_parameters(path, recurse=False)
        if parameter.requires_grad and any(_fits(entry, name, part) for entry in no_decay)
    }


def decay_groups(module: nn.Module, no_decay: Sequence[str] | None) -> list[Any]:
    """The trainable parameters for an optimizer: a plain list where all decay, as in the paper (None), else groups."""
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    names = spared(module, no_decay or ())
    if not names:
        return list(trained.values())
    decaying = [parameter for name, parameter in trained.items() if name not in names]
    resting = [parameter for name, parameter in trained.items() if name in names]
    groups: list[Any] = [{"params": decaying}] if decaying else []
    return [*groups, {"params": resting, "weight_decay": 0.0}]


def _fits(entry: str, name: str, part: nn.Module) -> bool:
    """Whether a parameter of this name, which `part` has itself, is of the kind or fits the pattern."""
    if entry == "bias":
        return name.rpartition(".")[2] == "bias"
    if entry == "norm":
        return isinstance(part, NORMS)
    if entry == "embedding":
        return isinstance(part, nn.Embedding)
    return fnmatchcase(name, entry)
