"""A first look at the candidates of a source: what is wrong with them, how large they are, which are alike."""

import hashlib
import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.duplicates import earlier_ones, exact_duplicates, near_duplicates, perceptual_hash
from data.errors import DataError
from data.sources import LARGEST_SAMPLE_BYTES, LeftOut, Sample, Source
from data.transforms import IMAGE_EXTENSIONS, BadSample, decode_image

SEGMENTATION = "seg.png"
_SIDES = (64, 128, 256, 512, 1024, 2048)
_ASPECTS = (0.5, 0.75, 0.95, 1.05, 1.34, 2.0)
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


ROW = np.dtype(
    [
        ("reason", "<u2"),  # why it is left out: its place in Survey.reasons, 0 where it isn't
        ("split", "u1"),  # number among the source's splits
        ("key", "<u8"),  # a hash of its key
        ("size", "<i4", 2),  # width and height
        ("sha256", "<u8", 2),  # of the picture's bytes, as `digest_of` gives it
        ("perceptual", "<u8"),  # 0 where nobody asked
    ]
)


class Survey:
    """What was found, in the order of the candidates. rows: of ROW, [N]. reasons: texts, the first is ""."""

    def __init__(self, rows: NDArray[np.void], reasons: Sequence[str] = ("",)) -> None:
        self.rows = rows
        self.reasons = list(reasons)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Which candidates no reason speaks against: bool [N]."""
        kept: NDArray[np.bool_] = self.rows["reason"] == 0
        return kept

    def code(self, reason: str) -> int:
        """The number of a reason."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason)

    @classmethod
    def together(cls, parts: Iterable["Survey"], count: int) -> "Survey":
        """One after another, `count` candidates in all."""
        whole, start = cls(np.zeros(count, ROW)), 0
        for part in parts:
            rows = whole.rows[start : start + len(part)]
            rows[:] = part.rows
            rows["reason"] = np.array([whole.code(reason) for reason in part.reasons])[part.rows["reason"]]
            start += len(part)
        return whole

    def to_bytes(self) -> bytes:
        """numpy's npz."""
        buffer = io.BytesIO()
        np.savez(buffer, rows=self.rows, reasons=np.array(self.reasons))
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> "Survey":
        """What `to_bytes` wrote. Raises DataError naming `name` when it is something else."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                rows, reasons = file["rows"], file["reasons"].tolist()
            if rows.dtype != ROW or (len(rows) and rows["reason"].max() >= len(reasons)):
                raise ValueError("its columns are others")
            return cls(rows, reasons)
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{name} is no survey: {error!r}. Remove it, and prepare again") from error


def digest_of(data: bytes) -> NDArray[np.uint64]:
    """The first 128 bits of SHA-256, uint64 [2]: chance makes no two alike, and millions stay in memory."""
    return np.frombuffer(hashlib.sha256(data).digest()[:16], dtype="<u8")


def survey(source: Source, positions: range, criteria: Criteria) -> Survey:
    """Looks at the candidates at these positions. Raises DataError when one has a key that can't be."""
    found = Survey(np.zeros(len(positions), ROW))
    for row, position in zip(found.rows, positions, strict=True):
        row["key"] = digest_of(source.key(position).encode(errors="surrogatepass"))[0]
        try:
            sample = source[position]
            _check(sample, source)
            picture = _looked_at(sample, criteria)
        except (BadSample, LeftOut) as error:
            row["reason"] = found.code(error.reason)
            continue
        row["split"] = list(source.splits).index(sample.split)
        row["size"] = picture.shape[1], picture.shape[0]
        row["sha256"] = digest_of(sample.image)
        row["perceptual"] = 0 if criteria.drop_similar is None else perceptual_hash(picture)
    return found


def _check(sample: Sample, source: Source) -> None:
    """What a source must not do. Raises DataError."""
    if not sample.key or any(character in sample.key for character in "./\\~"):
        raise DataError(f"key={sample.key!r} of {source.name} must be a file name without dots, slashes and ~")
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
    """positions: of the samples of each split, by its name, in their order. repeats: uint32 [N], of how many candidates
    before it each one has the key, left out or not. dropped: how many were, by reason. examples: positions of the first
    ones of each reason."""

    positions: dict[str, NDArray[np.int64]]
    repeats: NDArray[np.uint32]
    dropped: dict[str, int]
    examples: dict[str, list[int]]


def choose(found: Survey, splits: Sequence[str], criteria: Criteria, examples: int = 5) -> Choice:
    """Which candidates become samples. The duplicates among them are left out, which `found` then says."""
    if criteria.drop_same:
        duplicates = found.kept & exact_duplicates(found.rows["sha256"])
        found.rows["reason"][duplicates] = found.code("duplicate")
    if criteria.drop_similar is not None:
        good = np.flatnonzero(found.kept)
        duplicates = near_duplicates(found.rows["perceptual"][good], criteria.drop_similar)
        found.rows["reason"][good[duplicates]] = found.code("near_duplicate")
    counts = np.bincount(found.rows["reason"], minlength=len(found.reasons)).tolist()
    codes = {reason: code for code, reason in sorted(enumerate(found.reasons), key=lambda each: each[1])}
    dropped = {reason: counts[code] for reason, code in codes.items() if reason and counts[code]}
    first = {reason: np.flatnonzero(found.rows["reason"] == codes[reason])[:examples].tolist() for reason in dropped}
    here = {name: np.flatnonzero(found.kept & (found.rows["split"] == code)) for code, name in enumerate(splits)}
    return Choice(here, earlier_ones(found.rows["key"]), dropped, first)


def histograms(sizes: NDArray[np.int32]) -> dict[str, dict[str, int]]:
    """How many pictures have which shorter side in pixels, and which width by height. sizes: int32 [N, 2]."""
    return {
        "shorter_side": _histogram(sizes.min(axis=1), _SIDES),
        "aspect": _histogram(sizes[:, 0] / sizes[:, 1], _ASPECTS),
    }


def _histogram(values: NDArray[Any], edges: Sequence[float]) -> dict[str, int]:
    names = [f"below {edges[0]}", *(f"{low} to {high}" for low, high in pairwise(edges))]
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return dict(zip([*names, f"from {edges[-1]}"], counts.tolist(), strict=True))
