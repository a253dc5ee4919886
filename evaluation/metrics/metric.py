"""What every measure is: fed batch by batch, summed over ranks, then computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Value:
    """A measured number.

    deviation: over images, subsets or splits, as the measure says. low, high: ends of its 95 % confidence interval.
    """

    value: float
    deviation: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Pictures:
    """A batch of generated or of real images.

    numbers: int64 [B], each image's in the whole evaluation. images: uint8 [B, 3, H, W]. captions: B strings, or none.
    originals: the real images that these are to equal, uint8 [B, 3, H, W], where there are such.
    """

    numbers: Tensor
    images: Tensor
    captions: Sequence[str] = ()
    originals: Tensor | None = None

    def __post_init__(self) -> None:
        images, numbers = self.images, self.numbers
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be uint8 [B, 3, H, W]; got {images.dtype} {tuple(images.shape)}")
        if numbers.shape != images.shape[:1] or (self.captions and len(self.captions) != len(images)):
            raise ValueError(
                f"{len(images)} images have {len(numbers)} numbers and {len(self.captions)} captions; give one for each"
            )
        if self.originals is not None and self.originals.shape != images.shape:
            raise ValueError(
                f"images are {tuple(images.shape)} and their originals {tuple(self.originals.shape)}; "
                "draw them at the size of the originals"
            )


@dataclass(frozen=True)
class Sizes:
    """How many images an evaluation has over all ranks."""

    generated: int
    real: int


class Network(Protocol):
    """Turns images into what measures are computed from; one call serves every measure that reads it.

    description: the network and the sha256 of its weights. device: where it runs.
    """

    description: str
    device: torch.device

    @property
    def widths(self) -> Mapping[str, int]:
        """Length of each output that is a vector."""
        ...

    def outputs(self, pictures: Pictures) -> Mapping[str, Tensor]:
        """Outputs by name: vectors float [B, width], or numbers float [B]."""
        ...


class Ranks(Protocol):
    """This process's place among all, as training.distributed.Distributed has it."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The tensor's sum over all ranks."""
        ...


@dataclass(frozen=True)
class Alone:
    """The only process there is."""

    rank: int = 0
    world: int = 1

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        return tensor


ALONE = Alone()


class Metric(ABC):
    """A measure. network: what its inputs come from; None: from the pixels."""

    network: Network | None = None

    @abstractmethod
    def generated(self, pictures: Pictures, outputs: Mapping[str, Tensor]) -> None:
        """Adds generated images, and what the network makes of them."""

    def real(self, numbers: Tensor, outputs: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Adds what the network makes of real images with these numbers; most measures of single images need none."""

    @property
    def reference(self) -> tuple[Tensor, ...]:
        """All that is known of the real images, as sums over them: what is kept to be measured against again."""
        return ()

    @abstractmethod
    def reduce(self, ranks: Ranks) -> None:
        """Makes of this rank's sums those of all ranks."""

    @abstractmethod
    def compute(self, ranks: Ranks) -> dict[str, Value]:
        """The numbers, by the names they may be quoted under; the same on every rank. Call it after `reduce`."""
