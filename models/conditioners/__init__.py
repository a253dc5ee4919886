"""What conditions the denoiser: one conditioner a file. Each maps one input of a sample to one part of a Condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Condition:
    """What the denoiser reads besides z_t and t (LDM Sec. 3.3). Every part may be absent.

    context: float [B, L, D], attended to. channels: float [B, C, h, w], concatenated to z_t. labels: int64 [B], classes
    that are embedded like the timestep.
    """

    context: Tensor | None = None
    channels: Tensor | None = None
    labels: Tensor | None = None

    def parts(self) -> dict[str, Tensor]:
        """Those that are there, by name."""
        return {f.name: part for f in fields(self) if (part := getattr(self, f.name)) is not None}

    def __len__(self) -> int:
        """How many samples it is of; 0 where every part is absent."""
        return next((len(part) for part in self.parts().values()), 0)

    def repeated(self, count: int) -> Condition:
        """A condition of one sample for `count` samples; one of `count` samples as it is."""
        return Condition(**{name: part.expand(count, *part.shape[1:]) for name, part in self.parts().items()})

    def to(self, dtype: torch.dtype) -> Condition:
        """With floating-point parts in another dtype."""
        parts = self.parts().items()
        return Condition(**{name: part.to(dtype) if part.is_floating_point() else part for name, part in parts})


NOTHING = Condition()
"""What an unconditional model is given."""


def joined(conditions: Sequence[Condition]) -> Condition:
    """Several conditions of the same samples as one: contexts one after the other, channels on top of one another.

    Raises ValueError when more than one gives labels: there is one class embedding.
    """
    if sum(condition.labels is not None for condition in conditions) > 1:
        raise ValueError("more than one conditioner gives labels: the UNet embeds the classes of one")
    return _concatenated(conditions, 1)


def stacked(conditions: Sequence[Condition]) -> Condition:
    """Conditions of several groups of samples as one of all samples. Raises ValueError when their parts differ."""
    given = [set(condition.parts()) for condition in conditions]
    if any(names != given[0] for names in given):
        raise ValueError(f"conditions have the parts {given}: samples of one batch need the same ones")
    return _concatenated(conditions, 0)


def _concatenated(conditions: Sequence[Condition], dimension: int) -> Condition:
    names = [f.name for f in fields(Condition)]
    parts = {name: [part for c in conditions if (part := getattr(c, name)) is not None] for name in names}
    return Condition(**{name: torch.cat(p, dimension) if len(p) > 1 else p[0] for name, p in parts.items() if p})


class Conditioner(nn.Module):
    """Maps the input of its samples to one part of a Condition: `forward(input [B, ...]) -> Tensor`."""

    part: ClassVar[Literal["context", "channels", "labels"]]
    width: int
    """Of its context; only those have it that give one."""

    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of this module out of those of a file, under the names that they have here."""
        return state


class Conditioners(nn.ModuleDict):
    """Conditioners, each under the name of the input that it reads."""

    def forward(self, inputs: Mapping[str, Tensor]) -> Condition:
        """The condition of inputs [B, ...]; inputs that no conditioner reads are left alone.

        Raises ValueError when one is missing.
        """
        missing = sorted(set(self) - set(inputs))
        if missing:
            raise ValueError(f"inputs {missing} are missing; there are {sorted(inputs)}")
        return joined([Condition(**{c.part: c(inputs[name])}) for name, c in self.by_input().items()])

    def by_input(self) -> dict[str, Conditioner]:
        """The conditioners by the name of their input."""
        return dict(self.items())  # type: ignore[arg-type]
