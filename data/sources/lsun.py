"""LSUN: the lmdb folders that it is published in, such as bedroom_train_lmdb."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.sources import HELD_OUT, TRAIN, LeftOut, Sample
from data.sources.files import digest
from data.sources.held_out import HeldOut
from data.stream import Storage

_KINDS = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"))


class Lsun:
    """The pictures of an lmdb folder on a local disk, in the order of its keys.

    folder: its path; a Storage is for lists of names only. held_out: see HeldOut; the name is the picture's key.
    Raises DataError when the package lmdb, or the folder, is missing.
    """

    name = "lsun"
    attribution = "LSUN (Yu et al. 2015), for research by its terms"
    splits = (TRAIN, HELD_OUT)
    dropped: Mapping[str, int] = {}

    def __init__(self, folder: str, storage: Storage, held_out: float | str = 0.001) -> None:
        if not (Path(folder) / "data.mdb").is_file():
            raise DataError(f"{folder} holds no data.mdb: give the unpacked folder of LSUN, on a local disk")
        self.folder = folder
        self.held_out = HeldOut(held_out, storage)
        with _environment(folder, os.getpid()).begin() as transaction, transaction.cursor() as cursor:
            self._keys: list[bytes] = list(cursor.iternext(keys=True, values=False))
        if not self._keys:
            raise DataError(f"{folder} holds no picture")
        self.settings = {"keys": digest([key.hex() for key in self._keys]), "held_out": self.held_out.setting}

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, position: int) -> str:
        name = _name(self._keys[position])
        return name if name.isalnum() else self._keys[position].hex()

    def __getitem__(self, position: int) -> Sample:
        key = self._keys[position]
        with _environment(self.folder, os.getpid()).begin() as transaction:
            image = bytes(transaction.get(key))
        extension = next((kind for start, kind in _KINDS if image.startswith(start)), None)
        if extension is None:
            raise LeftOut("no_image")
        return Sample(self.key(position), image, extension, split=self.held_out.split(_name(key)))


def _name(key: bytes) -> str:
    return key.decode("ascii", errors="replace")


@lru_cache(maxsize=8)
def _environment(folder: str, process: int) -> Any:
    """The opened folder; each process needs its own, and may have one only."""
    try:
        import lmdb
    except ImportError as error:
        raise DataError("LSUN needs the package lmdb, which isn't installed: pip install lmdb") from error
    return lmdb.open(folder, readonly=True, lock=False, readahead=False)
