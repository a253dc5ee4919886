"""Pictures that are the same, and pictures that look the same."""

from collections import defaultdict
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIDE, _KEPT = 32, 8


def perceptual_hash(picture: NDArray[np.uint8]) -> int:
    """64 bits that stay nearly the same when a picture is scaled, re-encoded or brightened.

    picture: uint8 [H, W, 3]. Bits tell which of the 8 x 8 lowest frequencies (a discrete cosine transform of the grey
    picture at 32 x 32) lie above their median; the mean brightness is none of them (pHash, Zauner 2010, Sec. 3.2.1).
    """
    small = Image.fromarray(picture).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    frequencies = (_COSINES @ np.asarray(small, dtype=np.float64) @ _COSINES.T).ravel()
    # rounded: of a flat picture nothing but rounding errors would be left, and they'd decide
    bits = np.round(frequencies, 6) > np.median(np.round(frequencies, 6))
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _cosines() -> NDArray[np.float64]:
    """Frequencies 1 to 8 of a discrete cosine transform (DCT-II), float64 [8, 32]."""
    frequency = np.arange(1, _KEPT + 1)[:, None]
    return np.cos(np.pi / _SIDE * (np.arange(_SIDE) + 0.5) * frequency)


_COSINES = _cosines()


def exact_duplicates(digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which rows of uint64 [N, 2] have been there before: bool [N]."""
    order = np.lexsort(digests.T)  # equal ones stay in their order
    same = np.ones(max(len(digests) - 1, 0), dtype=np.bool_)
    for column in digests.T:
        same &= column[order[1:]] == column[order[:-1]]
    duplicate = np.zeros(len(digests), dtype=np.bool_)
    duplicate[order[1:][same]] = True
    return duplicate


def earlier_ones(values: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Of uint64 [N], how many before each are equal to it: uint32 [N]."""
    order = np.argsort(values, kind="stable")
    is_first = np.append(True, values[order[1:]] != values[order[:-1]])[: len(values)]
    places = np.arange(len(values), dtype=np.uint32)
    earlier = np.empty_like(places)
    earlier[order] = places - np.maximum.accumulate(places * is_first)
    return earlier


def near_duplicates(hashes: NDArray[np.uint64], bits: int) -> NDArray[np.bool_]:
    """Which of uint64 [N] differ in at most so many bits from one before that is no duplicate itself: bool [N].

    Two hashes that differ in b bits agree in one of b + 1 intervals of them, so only those that do are compared.
    """
    edges = [64 * number // (bits + 1) for number in range(bits + 2)]
    intervals = [(start, (1 << (stop - start)) - 1) for start, stop in pairwise(edges)]
    kept: list[defaultdict[int, list[int]]] = [defaultdict(list) for _ in intervals]
    duplicate = np.zeros(len(hashes), dtype=np.bool_)
    for position, value in enumerate(hashes.tolist()):
        parts = [(value >> start) & mask for start, mask in intervals]
        alike = any(
            (value ^ other).bit_count() <= bits
            for part, found in zip(parts, kept, strict=True)
            for other in found.get(part, ())
        )
        if alike:
            duplicate[position] = True
        else:
            for part, found in zip(parts, kept, strict=True):
                found[part].append(value)
    return duplicate
