"""A first look at the candidates of a source: what is wrong with them, how large they are, which are alike."""

import hashlib
import io
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.duplicates import exact_duplicates, near_duplicates, perceptual_hash
from data.errors import DataError
from data.sources import LARGEST_SAMPLE_BYTES, LeftOut, Sample, Source
from data.transforms import IMAGE_EXTENSIONS, BadSample, decode_image

SEGMENTATION = "seg.png"
_LARGEST_DIFFERENCE = 7  # bits; the search takes longer with each, and other pictures begin to be alike


@dataclass(frozen=True, slots=True)
class Criteria:
    """Which pictures become samples.

    smallest_side: pixels of the shorter side, or more. drop_same: of pictures with the same bytes (SHA-256) keep the
    first. drop_similar: of pictures whose perceptual hashes differ in at most so many of 64 bits, from 0 to 7, keep the
    first; None: keep all. Raises DataError.
    """

    smallest_side: int = 1
    drop_same: bool = False
    drop_similar: int | None = None

    def __post_init__(self) -> None:
        if self.smallest_side < 1:
            raise DataError(f"criteria.smallest_side={self.smallest_side} must be at least 1 pixel")
        if self.drop_similar is not None and not 0 <= self.drop_similar <= _LARGEST_DIFFERENCE:
            raise DataError(
                f"criteria.drop_similar={self.drop_similar} must lie in 0 to {_LARGEST_DIFFERENCE} bits, or be null"
            )


@dataclass(frozen=True)
class Survey:
    """What was found, in the order of the candidates; the arrays are of one length N.

    reasons: text [N], why one is left out, "" where it isn't. keys: text [N]. splits: uint8 [N], number among the
    source's splits. sizes: int32 [N, 2], width and height. sha256: uint8 [N, 32] of the pictures' bytes.
    perceptual: uint64 [N], 0 where nobody asked.
    """

    reasons: NDArray[np.str_]
    keys: NDArray[np.str_]
    splits: NDArray[np.uint8]
    sizes: NDArray[np.int32]
    sha256: NDArray[np.uint8]
    perceptual: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.reasons)

    @classmethod
    def together(cls, parts: Sequence["Survey"]) -> "Survey":
        """One after another."""
        names = cls.__dataclass_fields__
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def to_bytes(self) -> bytes:
        """numpy's npz."""
        buffer = io.BytesIO()
        np.savez(buffer, **{name: getattr(self, name) for name in self.__dataclass_fields__})
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> "Survey":
        """What `to_bytes` wrote. Raises DataError naming `name` when it is something else."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                return cls(*(file[field] for field in cls.__dataclass_fields__))
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{name} is no survey: {error!r}. Remove it, and prepare again") from error


def survey(source: Source, positions: range, criteria: Criteria) -> Survey:
    """Looks at the candidates at these positions. Raises DataError when one has a key that can't be."""
    rows = [_look(source, position, criteria) for position in positions]
    return Survey(
        np.array([row[0] for row in rows], dtype=np.str_),
        np.array([row[1] for row in rows], dtype=np.str_),
        np.array([row[2] for row in rows], dtype=np.uint8),
        np.array([row[3] for row in rows], dtype=np.int32).reshape(-1, 2),
        np.frombuffer(b"".join(row[4] for row in rows), dtype=np.uint8).reshape(-1, 32),
        np.array([row[5] for row in rows], dtype=np.uint64),
    )


def _look(source: Source, position: int, criteria: Criteria) -> tuple[str, str, int, tuple[int, int], bytes, int]:
    """A row of the survey."""
    key = ""
    try:
        sample = source[position]
        key = sample.key
        _check(sample, source)
        picture = _looked_at(sample, criteria)
    except (BadSample, LeftOut) as error:
        return error.reason, key, 0, (0, 0), bytes(32), 0
    alike = 0 if criteria.drop_similar is None else perceptual_hash(picture)
    size = picture.shape[1], picture.shape[0]
    split = list(source.splits).index(sample.split)
    return "", sample.key, split, size, hashlib.sha256(sample.image).digest(), alike


def _check(sample: Sample, source: Source) -> None:
    """What a source must not do. Raises DataError."""
    if not sample.key or any(character in sample.key for character in "./\\"):
        raise DataError(f"key={sample.key!r} of {source.name} must be a file name without dots and slashes")
    if sample.split not in source.splits:
        raise DataError(f"split={sample.split!r} of {source.name} must be one of {', '.join(source.splits)}")


def _looked_at(sample: Sample, criteria: Criteria) -> NDArray[np.uint8]:
    """The picture, uint8 [H, W, 3]. Raises BadSample where training couldn't use it."""
    if sample.extension not in IMAGE_EXTENSIONS:
        raise BadSample("no_image", f"{sample.extension} is none of {', '.join(IMAGE_EXTENSIONS)}")
    if len(sample.image) + sum(map(len, sample.members.values())) > LARGEST_SAMPLE_BYTES:
        raise BadSample("too_many_bytes")
    picture = decode_image(sample.image, extension=sample.extension)
    if min(picture.shape[:2]) < criteria.smallest_side:
        raise BadSample("too_small", f"{picture.shape[1]} x {picture.shape[0]}")
    if SEGMENTATION in sample.members:
        from data.inputs.segmentation import decoded_map  # imports torch

        classes = decoded_map(sample.members[SEGMENTATION])
        if classes.shape != picture.shape[:2]:
            raise BadSample("undecodable", f"the map has {classes.shape}, the picture {picture.shape[:2]}")
    return picture


@dataclass(frozen=True)
class Choice:
    """positions: of the samples of each split, by its name, in their order. dropped: how many were, by reason.
    examples: keys, or positions, of the first ones of each reason."""

    positions: dict[str, NDArray[np.int64]]
    dropped: dict[str, int]
    examples: dict[str, list[str]]


def choose(found: Survey, splits: Sequence[str], criteria: Criteria, examples: int = 5) -> Choice:
    """Which candidates become samples, the duplicates among them left out."""
    reasons = found.reasons.astype("U64")
    for wanted, reason, duplicates in (
        (criteria.drop_same, "duplicate", lambda good: exact_duplicates(found.sha256[good])),
        (
            criteria.drop_similar is not None,
            "near_duplicate",
            lambda good: near_duplicates(found.perceptual[good], criteria.drop_similar or 0),
        ),
    ):
        if wanted:
            good = np.flatnonzero(reasons == "")
            reasons[good[duplicates(good)]] = reason
    dropped = Counter(reasons[reasons != ""].tolist())
    named = {}
    for reason in dropped:
        first = np.flatnonzero(reasons == reason)[:examples].tolist()
        named[reason] = [str(found.keys[position]) or f"candidate {position}" for position in first]
    kept = reasons == ""
    positions = {name: np.flatnonzero(kept & (found.splits == number)) for number, name in enumerate(splits)}
    return Choice(positions, dict(sorted(dropped.items())), dict(sorted(named.items())))
