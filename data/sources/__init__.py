"""Data sets as they lie on disk or in packages. Each yields samples; `data.prepare` makes shards of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

TRAIN, HELD_OUT = "train", "heldout"


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture with its caption.

    key: unique in its source; a file name without dots and slashes. image: an encoded file of the kind
    `extension` ("png", "jpg"). metadata: whatever JSON can hold; kept beside the picture.
    """

    key: str
    image: bytes
    extension: str
    caption: str
    metadata: Mapping[str, object] = field(default_factory=dict)


class Source(Protocol):
    """A data set that can be made into shards."""

    @property
    def name(self) -> str:
        """Short name, for the manifest."""

    @property
    def attribution(self) -> str:
        """Author and licence, as the licence wants them named."""

    @property
    def settings(self) -> Mapping[str, object]:
        """What its samples depend on besides the name, for example the picture size; JSON."""

    def __len__(self) -> int:
        """Samples that iterating gives."""

    def __iter__(self) -> Iterator[Sample]:
        """All samples, always in the same order."""

    @property
    def dropped(self) -> Mapping[str, int]:
        """Pictures left out, by reason."""

    @property
    def splits(self) -> Sequence[str]:
        """Names of its parts, each of which becomes shards of its own: HELD_OUT, which no training sees, and others."""

    def split(self, key: str) -> str:
        """The part that the sample belongs to."""
