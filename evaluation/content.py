"""A hash of what data holds, whatever its files are called and wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import IO

import numpy as np
import torch

from evaluation.metrics.metric import Ranks

PIECE_BYTES = 1 << 22
READERS = 8
"""Files that a rank reads at a time; hashing leaves Python's lock alone."""


def content_sha256(files: Sequence[Callable[[], AbstractContextManager[IO[bytes]]]], ranks: Ranks) -> str:
    """sha256 of the files' own, in their order, in hexadecimal. The ranks share the reading; each gets it.

    files: functions that open one each.
    """

    def digest(opened: Callable[[], AbstractContextManager[IO[bytes]]]) -> bytes:
        with opened() as file:
            found = hashlib.sha256()
            while piece := file.read(PIECE_BYTES):
                found.update(piece)
            return found.digest()

    found = torch.zeros(len(files), 4, dtype=torch.int64)
    with ThreadPoolExecutor(READERS) as pool:
        mine = b"".join(pool.map(digest, files[ranks.rank :: ranks.world]))
    found[ranks.rank :: ranks.world] = torch.from_numpy(np.frombuffer(mine, "<i8").reshape(-1, 4).copy())
    return hashlib.sha256(ranks.all_reduce_sum(found).numpy().astype("<i8").tobytes()).hexdigest()
