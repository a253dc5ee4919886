"""The samples of a tar shard, by its headers. Shards are other people's: whatever they hold, reading them ends, within
bounded memory, in samples or in an error that names the shard."""

import hashlib
import logging
import re
import tarfile
import zlib
from collections.abc import Container, Iterator
from typing import IO, cast

from data.errors import Unreadable
from data.offsets import BLOCK_BYTES, Entry, Member

log = logging.getLogger(__name__)
_PIECE_BYTES = 1 << 20
_LARGEST_CONTENT_BYTES = 1 << 20
_HEADERS_BYTES = 8 << 10  # of one member, extended ones included; a path has at most 4 KiB
_GLOBAL_FIELDS = 64  # that a shard may set for all of its members
_EXTENSIONS = 64  # each is a column of the shard's offsets
_KEY_BYTES = 512  # every key takes as much memory as the shard's longest
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# tarfile answers damage in headers with whatever its parser trips over
_DAMAGED = (tarfile.TarError, EOFError, ValueError, LookupError, OverflowError, RecursionError)


def read_headers(
    file: IO[bytes], size: int, name: str, checksums: bool = False, contents: Container[str] = ()
) -> list[Entry]:
    """The samples of a tar shard: consecutive members with the same name up to the first dot.

    size: bytes of the shard. checksums: read the members too and note their CRC-32. contents: extensions of members
    whose bytes are wanted, where they are at most a megabyte. A sample whose bytes end with the file, or after which
    no header can be read, has the fault "truncated". Of members with more than 64 different extensions those of further
    ones are left out, which the log says. Raises Unreadable naming `name` when the file is no tar at all.
    """
    entries: list[Entry] = []
    extensions: set[str] = set()
    left_out, end = 0, 0
    try:
        for info in _members(file):
            if not info.isreg() or info.issparse():  # links, folders, devices: nothing of them is a sample's
                continue
            end = info.offset_data + -(-info.size // BLOCK_BYTES) * BLOCK_BYTES
            key, extension = _key_and_extension(info.name)
            if extension not in extensions and len(extensions) == _EXTENSIONS:
                left_out += 1
                continue
            extensions.add(extension)
            file.seek(info.offset_data - BLOCK_BYTES)
            header = file.read(BLOCK_BYTES)
            if info.offset_data + info.size > size:
                member = Member(info.offset_data, max(0, size - info.offset_data))
                _add(entries, key, extension, member, header)
                entries[-1].fault = "truncated"
                return entries
            _add(entries, key, extension, Member(info.offset_data, info.size), header)
            if extension in contents and info.size <= _LARGEST_CONTENT_BYTES:
                entries[-1].contents[extension] = file.read(info.size)
            if checksums:
                crc32 = _crc32(file, info.offset_data, info.size)
                entries[-1].members[extension] = Member(info.offset_data, info.size, crc32)
    except _DAMAGED as error:
        if not entries:
            raise Unreadable(f"{name} is no readable tar file: {error}. Write it again, or leave it out") from error
    if left_out:
        log.warning("%s: %d members have further extensions than the first %d", name, left_out, _EXTENSIONS)
    if end < size:
        file.seek(end)
        following = file.read(BLOCK_BYTES)
        # tarfile takes a damaged header for the end of the archive: samples behind it would vanish silently
        if entries and (len(following) < BLOCK_BYTES or any(following)):
            log.error("%s: no tar header at byte %d of %d: what follows is lost", name, end, size)
            entries[-1].fault = "truncated"
    return entries


class _Bounded:
    """A shard as tarfile reads it: at most so many bytes of a member's headers, whatever they claim to have."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek = file.seek
        self.tell = file.tell
        self._file = file
        self.next_member()

    def next_member(self) -> None:
        self._left = _HEADERS_BYTES

    def read(self, count: int) -> bytes:
        if not 0 <= count <= self._left:
            raise tarfile.ReadError(f"headers of a member claim {count} bytes")
        self._left -= count
        return self._file.read(count)


def _members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """All headers, each one behind the one before."""
    bounded, last = _Bounded(file), -1
    # names that are no UTF-8 stay different from one another, and are text that can be written anywhere
    with tarfile.open(fileobj=cast(IO[bytes], bounded), mode="r:", errors="backslashreplace") as tar:
        while (info := tar.next()) is not None:
            if info.offset <= last or info.size < 0 or len(tar.pax_headers) > _GLOBAL_FIELDS:
                raise tarfile.ReadError(f"what no tar has in its header at byte {info.offset}")
            last = info.offset
            tar.members.clear()  # type: ignore[attr-defined]  # else it keeps every header of the shard
            bounded.next_member()
            yield info


def _crc32(file: IO[bytes], start: int, size: int) -> int:
    """Of bytes [start, start + size), read in pieces, whatever a header says of their number."""
    file.seek(start)
    crc32 = 0
    while size > 0 and (piece := file.read(min(size, _PIECE_BYTES))):
        crc32 = zlib.crc32(piece, crc32)
        size -= len(piece)
    return crc32


def _key_and_extension(name: str) -> tuple[str, str]:
    """Of a member's name. Characters that no name should have are escaped, a very long key gets its hash for an end."""
    folder, _, base = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", name).rpartition("/")
    stem, _, extension = base.partition(".")
    key = f"{folder}/{stem}" if folder else stem
    encoded = key.encode()
    if len(encoded) > _KEY_BYTES:
        digest = hashlib.sha256(encoded).hexdigest()[:16]
        key = f"{encoded[: _KEY_BYTES - 17].decode(errors='ignore')}-{digest}"
    return key, extension.lower()


def _add(entries: list[Entry], key: str, extension: str, member: Member, header: bytes) -> None:
    if not entries or entries[-1].key != key or extension in entries[-1].members:
        entries.append(Entry(key, {}))
    entries[-1].members[extension] = member
    entries[-1].headers_crc32 = zlib.crc32(header, entries[-1].headers_crc32)
