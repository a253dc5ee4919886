"""Data sets as they lie on disk or in packages. Each is a list of candidates; `data.prepare` makes shards of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

TRAIN, HELD_OUT = "train", "heldout"
LARGEST_SAMPLE_BYTES = 256 << 20  # with all that belongs to it


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture with what is known of it.

    key: a file name without dots, slashes and ~; where several candidates have the same, `data.prepare` puts ~2, ~3
    behind later ones. image: an encoded file of the kind `extension` ("png", "jpg"). caption: "" without one.
    metadata: whatever JSON can hold; kept beside the picture. members: further files of the sample, by extension
    ("seg.png"). split: one of its source's splits.
    """

    key: str
    image: bytes
    extension: str
    caption: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)
    members: Mapping[str, bytes] = field(default_factory=dict)
    split: str = TRAIN


class LeftOut(Exception):
    """A candidate that doesn't become a sample; `reason` is counted, in words joined by underscores."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Source(Protocol):
    """A data set that can be made into shards: a sequence of candidates, always in the same order."""

    @property
    def name(self) -> str:
        """Short name, for the manifest."""

    @property
    def attribution(self) -> str:
        """Author and licence, as the licence wants them named."""

    @property
    def settings(self) -> Mapping[str, object]:
        """What its samples depend on besides the name, for example the picture size, or a hash of their list; JSON."""

    @property
    def splits(self) -> Sequence[str]:
        """Names of its parts, each of which becomes shards of its own: HELD_OUT, which no training sees, and others."""

    @property
    def dropped(self) -> Mapping[str, int]:
        """What was left out when the candidates were listed, by reason."""

    def __len__(self) -> int:
        """Candidates."""

    def key(self, position: int) -> str:
        """The key of the candidate at a position, also where it makes no sample."""

    def __getitem__(self, position: int) -> Sample:
        """The candidate at a position. Raises BadSample or LeftOut where it makes no sample, IndexError behind the
        last, and DataError where the whole preparation has to end."""
