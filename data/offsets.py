"""Where the members of each sample lie in a tar shard, and the sidecar file that says so."""

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError

BLOCK_BYTES = 512  # of a tar file; a member's header is the block before its bytes
_VERSION = 2
_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a sample: bytes [offset, offset + size) of the shard. crc32 is None when unknown."""

    offset: int
    size: int
    crc32: int | None = None


@dataclass(slots=True)
class Entry:
    """One sample of a shard. members: by lower-case extension. headers_crc32: of its members' headers, by which a
    shard that was written anew is told. fault: why it cannot be used, or None. contents: what was asked for."""

    key: str
    members: dict[str, Member]
    headers_crc32: int = 0
    fault: str | None = None
    contents: dict[str, bytes] = field(default_factory=dict, compare=False, repr=False)


class Offsets:
    """The samples of one shard in arrays: a shard of 10,000 takes a megabyte, and a millisecond to read.

    keys: bytes [N]. members: by extension, int64 [N, 3] of offset, size and CRC-32, -1 where there is none.
    headers_crc32: uint32 [N]. truncated: bool [N]. buckets: uint8 [N], the size of `data.buckets` that each is cut to;
    None where nobody asked.
    """

    def __init__(
        self,
        keys: NDArray[np.bytes_],
        members: dict[str, NDArray[np.int64]],
        headers_crc32: NDArray[np.uint32],
        truncated: NDArray[np.bool_],
        buckets: NDArray[np.uint8] | None = None,
    ) -> None:
        self.keys = keys
        self.members = members
        self.headers_crc32 = headers_crc32
        self.truncated = truncated
        self.buckets = buckets

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> "Offsets":
        """The arrays of these samples, without their contents."""
        extensions = sorted({extension for entry in entries for extension in entry.members})
        members = {extension: np.full((len(entries), 3), _UNKNOWN, dtype=np.int64) for extension in extensions}
        for position, entry in enumerate(entries):
            for extension, member in entry.members.items():
                crc32 = _UNKNOWN if member.crc32 is None else member.crc32
                members[extension][position] = member.offset, member.size, crc32
        return cls(
            np.array([entry.key.encode() for entry in entries], dtype=np.bytes_),
            members,
            np.array([entry.headers_crc32 for entry in entries], dtype=np.uint32),
            np.array([entry.fault is not None for entry in entries], dtype=np.bool_),
        )

    def __len__(self) -> int:
        return len(self.keys)

    def only(self, kept: NDArray[np.bool_], buckets: NDArray[np.uint8] | None) -> "Offsets":
        """Those of the samples that are to be kept, bool [N]. buckets: of all samples, or None."""
        members = {extension: rows[kept] for extension, rows in self.members.items()}
        return Offsets(
            self.keys[kept],
            {extension: rows for extension, rows in members.items() if (rows[:, 0] != _UNKNOWN).any()},
            self.headers_crc32[kept],
            self.truncated[kept],
            None if buckets is None else buckets[kept],
        )

    def __getitem__(self, position: int) -> Entry:
        members = {}
        for extension, rows in self.members.items():
            offset, size, crc32 = rows[position].tolist()
            if offset != _UNKNOWN:
                members[extension] = Member(offset, size, None if crc32 == _UNKNOWN else crc32)
        members = dict(sorted(members.items(), key=lambda item: item[1].offset))  # as they lie in the shard
        fault = "truncated" if self.truncated[position] else None
        return Entry(self.keys[position].decode(), members, int(self.headers_crc32[position]), fault)

    def to_sidecar(self) -> bytes:
        """The bytes of a sidecar file (numpy's npz)."""
        buffer = io.BytesIO()
        columns: dict[str, Any] = {f"member.{extension}": rows for extension, rows in self.members.items()}
        if self.buckets is not None:
            columns["buckets"] = self.buckets
        np.savez(
            buffer,
            version=np.array(_VERSION),
            keys=self.keys,
            headers_crc32=self.headers_crc32,
            truncated=self.truncated,
            **columns,
        )
        return buffer.getvalue()

    @classmethod
    def from_sidecar(cls, data: bytes, name: str) -> "Offsets":
        """The samples that `to_sidecar` wrote. Raises DataError naming `name` when it is something else."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                if int(file["version"]) != _VERSION:
                    raise ValueError(f"version {file['version']}, this program reads {_VERSION}")
                members = {
                    column.removeprefix("member."): file[column]
                    for column in file.files
                    if column.startswith("member.")
                }
                buckets = file["buckets"] if "buckets" in file.files else None
                found = cls(file["keys"], members, file["headers_crc32"], file["truncated"], buckets)
            wrong = [rows.shape for rows in members.values() if rows.shape != (len(found), 3)]
            others = [found.truncated, found.headers_crc32, *([] if buckets is None else [buckets])]
            if wrong or any(len(column) != len(found) for column in others):
                raise ValueError(f"{len(found)} keys and arrays of other lengths")
            return found
        except (ValueError, KeyError, TypeError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise DataError(f"{name} is no offsets file: {error!r}. Remove it, or prepare the index again") from error


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
