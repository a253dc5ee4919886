"""Where the members of each sample lie in a tar shard, read from the tar's headers or from a sidecar file."""

import io
import json
import logging
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from data.errors import DataError

log = logging.getLogger(__name__)
_BLOCK = 512  # of a tar file
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a sample: bytes [offset, offset + size) of the shard. crc32 is None when unknown."""

    offset: int
    size: int
    crc32: int | None = None


@dataclass(slots=True)
class Entry:
    """One sample of a shard. members: by lower-case extension. fault: why it cannot be used, or None."""

    key: str
    members: dict[str, Member]
    fault: str | None = None


def read_headers(file: IO[bytes], size: int, name: str, checksums: bool = False) -> list[Entry]:
    """The samples of a tar shard: consecutive members with the same name up to the first dot.

    size: bytes of the shard. checksums: read the members too and note their CRC-32.
    A sample whose bytes end with the file has the fault "truncated". Raises DataError naming `name` when the
    file is no tar at all.
    """
    entries: list[Entry] = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            end = 0
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps every header of the shard
                if not info.isreg():
                    continue
                end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
                if info.offset_data + info.size > size:
                    _add(entries, info.name, Member(info.offset_data, max(0, size - info.offset_data)))
                    entries[-1].fault = "truncated"
                    return entries
                crc32 = None
                if checksums:
                    file.seek(info.offset_data)
                    crc32 = zlib.crc32(file.read(info.size))
                _add(entries, info.name, Member(info.offset_data, info.size, crc32))
    except (tarfile.TarError, EOFError) as error:
        if not entries:
            raise DataError(f"{name} is no readable tar file: {error}. Write it again, or leave it out") from error
    file.seek(end)
    following = file.read(_BLOCK)
    # tarfile takes a damaged header for the end of the archive: samples behind it would vanish silently
    if entries and following and (len(following) < _BLOCK or any(following)):
        log.error("%s: no tar header at byte %d of %d: what follows is lost", name, end, size)
        entries[-1].fault = "truncated"
    return entries


def _add(entries: list[Entry], name: str, member: Member) -> None:
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    key = f"{folder}/{stem}" if folder else stem
    if not entries or entries[-1].key != key or extension.lower() in entries[-1].members:
        entries.append(Entry(key, {}))
    entries[-1].members[extension.lower()] = member


def to_sidecar(entries: list[Entry], size: int) -> bytes:
    """A sidecar file: JSON with one [offset, size, crc32] per sample and extension."""
    extensions = sorted({extension for entry in entries for extension in entry.members})
    members: dict[str, list[list[int | None] | None]] = {extension: [] for extension in extensions}
    for entry in entries:
        for extension in extensions:
            member = entry.members.get(extension)
            members[extension].append([member.offset, member.size, member.crc32] if member else None)
    faults = {str(i): entry.fault for i, entry in enumerate(entries) if entry.fault}
    content = {
        "version": _VERSION,
        "size": size,
        "keys": [entry.key for entry in entries],
        "members": members,
        "faults": faults,
    }
    return json.dumps(content, separators=(",", ":")).encode()


def from_sidecar(data: bytes, name: str) -> list[Entry]:
    """The samples that `to_sidecar` wrote. Raises DataError naming `name` when it is something else."""
    try:
        content: dict[str, Any] = json.loads(data)
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']}, this program reads {_VERSION}")
        entries = [Entry(key, {}) for key in content["keys"]]
        for extension, members in content["members"].items():
            for entry, member in zip(entries, members, strict=True):
                if member is not None:
                    entry.members[extension] = Member(*member)
        for position, fault in content["faults"].items():
            entries[int(position)].fault = fault
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(f"{name} is no offsets file: {error!r}. Remove it, or prepare the shards again") from error
    return entries


class RangeFile(io.RawIOBase):
    """A seekable read-only file made of ranged reads."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read = read
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        data = self._read(self._position, min(self._size, self._position + len(view)))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
