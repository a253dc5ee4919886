"""What a model's conditioners read: one kind of input a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data.view import View


@dataclass(frozen=True, slots=True)
class Parts:
    """One sample, as far as inputs may read it.

    members: the files of its shard entry, by extension. details: its .json, {} without one. caption: the one chosen,
    "" without any. image: uint8 [S, S, 3], cut and scaled; [0, 0, 3] where samples are latents, which an input that
    needs the image never sees. view: what of the picture that is. generator: keyed by (seed, sample number).
    """

    members: Mapping[str, bytes]
    details: Mapping[str, Any]
    caption: str
    image: NDArray[np.uint8]
    view: View
    generator: np.random.Generator


class Input(Protocol):
    """One of the things that a model is conditioned on. needs_image: it is made of the image's pixels."""

    needs_image: bool

    def read(self, sample: Parts) -> Tensor:
        """The input of a sample. Raises BadSample when it has none."""
        ...

    def nothing(self) -> Tensor:
        """The input that says nothing, of the same shape: what dropout puts in a sample's place, and what guidance
        starts from."""
        ...

    def parse(self, value: Any) -> Tensor:
        """The input that a person describes: a prompt, a class number, the path of a picture. Raises DataError."""
        ...
