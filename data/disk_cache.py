"""Blocks of remote objects on a local disk, shared by every process of a machine, within a bound."""

import fcntl
import hashlib
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.blocks import Key
from data.errors import DataError

_HEADER = struct.Struct("<QI")  # length and CRC-32 of the block behind it
_KEPT_SHARE = 0.9  # of the bound, after blocks were dropped
_PART = ".part"
_REMEDY = "Name a folder on a local disk that this user may write to, or null for none"


class DiskCache:
    """Blocks by (URL, number) as files below `folder`, at most `capacity_bytes` of them; the least recently used go.

    Any number of processes may use one folder, and be killed at any time: a block is whole or absent, what a crash of
    the machine tore is told by its checksum, and the bound is kept by a count under a lock. A process that doesn't get
    the lock at once leaves its block uncached; reading takes no lock. block_bytes is part of a block's name, so that
    processes with other block sizes don't disturb one another. Raises DataError when the folder can't be made.
    """

    def __init__(self, folder: str, capacity_bytes: int, block_bytes: int) -> None:
        self.folder = Path(folder)
        self.capacity_bytes = capacity_bytes
        self.block_bytes = block_bytes
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(self.folder, os.W_OK | os.X_OK)
        except OSError as error:
            raise DataError(f"cache_folder={folder} cannot be made: {error}. {_REMEDY}") from error
        if not writable:
            raise DataError(f"cache_folder={folder} may not be written to. {_REMEDY}")

    def get(self, key: Key) -> bytes | None:
        """The block, now the most recently used; None when it is not here, or not as it was put."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            length, crc32 = _HEADER.unpack_from(data)
            block = data[_HEADER.size :]
            if len(block) != length or zlib.crc32(block) != crc32:
                path.unlink()
                return None
            os.utime(path)
        except (OSError, struct.error):
            return None
        return block

    def put(self, key: Key, block: bytes) -> None:
        """Keep a block, dropping others while they don't fit. A disk that is full or gone is no error."""
        size = len(block) + _HEADER.size
        with suppress(OSError), self._locked() as have:
            if not have or size > self.capacity_bytes:
                return
            path = self._path(key)
            held = self._held()
            if held is None or held + size > self.capacity_bytes:
                held = self._drop_oldest(int(_KEPT_SHARE * self.capacity_bytes) - size)
            if path.exists():
                return
            self._write_held(held + size)  # before the block: a crash between the two counts too much, not too little
            path.parent.mkdir(exist_ok=True)
            part = path.with_name(f"{path.name}.{os.getpid()}{_PART}")
            part.write_bytes(_HEADER.pack(len(block), zlib.crc32(block)) + block)
            part.rename(path)

    def forget(self, url: str) -> None:
        """Drop every block of `url`. They are counted until the bound is reached, when all is counted anew."""
        shutil.rmtree(self._path((url, 0)).parent, ignore_errors=True)

    def _path(self, key: Key) -> Path:
        return self.folder / hashlib.sha256(key[0].encode()).hexdigest()[:32] / f"{self.block_bytes}-{key[1]}"

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Whether this process has the lock, which a process that dies leaves."""
        descriptor = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def _held(self) -> int | None:
        try:
            return int((self.folder / "held_bytes").read_text())
        except (OSError, ValueError):
            return None

    def _write_held(self, held: int) -> None:
        (self.folder / "held_bytes").write_text(str(held))

    def _drop_oldest(self, allowed_bytes: int) -> int:
        """Counts what is there, drops the least recently used down to `allowed_bytes`, returns what is left."""
        found = []
        for directory, _, names in os.walk(self.folder):
            if directory == str(self.folder):
                continue
            for name in names:
                path = os.path.join(directory, name)
                with suppress(OSError):
                    if name.endswith(_PART):  # blocks are written under the lock: its writer is dead
                        os.unlink(path)
                    else:
                        status = os.stat(path)
                        found.append((status.st_mtime_ns, path, status.st_size))
        held = sum(size for _, _, size in found)
        for _, path, size in sorted(found):
            if held <= allowed_bytes:
                break
            with suppress(OSError):
                os.unlink(path)
                held -= size
        return held
