"""The bytes of a sample's members, and whether they are what was indexed."""

import zlib
from collections.abc import Iterable, Mapping

from data.errors import DataError, NotFound, Refused
from data.offsets import BLOCK_BYTES, Entry
from data.stream import Storage
from data.transforms import BadSample, Reason

_LARGEST_SAMPLE_BYTES = 256 << 20


class MemberReader:
    """Reads samples from their shards.

    replace_bad_shards: samples of shards that are gone, refused, or changed since they were indexed are bad samples;
    False: they are a DataError.
    """

    def __init__(self, storage: Storage, replace_bad_shards: bool) -> None:
        self.storage = storage
        self.replace_bad_shards = replace_bad_shards

    def prefetch(self, places: Iterable[tuple[str, Entry]]) -> None:
        """Brings samples' bytes, of these shard URLs and entries, into the cache, several requests at a time."""
        self.storage.prefetch((url, *_span(entry)) for url, entry in places if _is_readable(entry))

    def read(self, url: str, entry: Entry) -> dict[str, bytes]:
        """The members of a sample, by extension. Raises BadSample where its bytes aren't what was indexed, and
        DataError."""
        if entry.fault == "truncated":
            raise BadSample("truncated", "the shard ends within the sample")
        if not entry.members:
            return {}
        start, stop = _span(entry)
        if not _is_readable(entry):
            raise BadSample("too_many_bytes", f"{stop - start} are above {_LARGEST_SAMPLE_BYTES}")
        for last_try in (False, True):
            try:
                data = self.storage.read(url, start, stop)
            except (NotFound, Refused) as error:  # S3 refuses what isn't there to those who may not list
                reason: Reason = "missing" if isinstance(error, NotFound) else "refused"
                raise self._bad_shard(reason, url, entry, str(error)) from error
            members = {
                extension: data[member.offset - start : member.offset - start + member.size]
                for extension, member in entry.members.items()
            }
            wrong = _wrong(data, start, stop, members, entry)
            if wrong is None:
                break
            if last_try:
                detail = f"{len(data)} of {stop - start} bytes"
                raise BadSample(wrong, detail) if wrong == "corrupt" else self._bad_shard(wrong, url, entry, detail)
            self.storage.forget(url)  # a ranged read is not verified on the way: ask the store once more
        return members

    def _bad_shard(self, reason: Reason, url: str, entry: Entry, detail: str) -> Exception:
        """What to raise for a shard that is no longer what was indexed."""
        if self.replace_bad_shards:
            return BadSample(reason, detail)
        return DataError(
            f"{url} is not what was indexed ({reason}, sample {entry.key}: {detail}). Bring the shard back; or prepare "
            "the index again and begin another run, as a run keeps to its index; or let such samples be replaced "
            "(data.bad_shards=replace)"
        )


def _span(entry: Entry) -> tuple[int, int]:
    """Bytes of the shard that hold all members of a sample, with their headers."""
    members = entry.members.values()
    return min(m.offset for m in members) - BLOCK_BYTES, max(m.offset + m.size for m in members)


def _is_readable(entry: Entry) -> bool:
    """False for a sample that would fill the memory: its size is what a header claims."""
    if not entry.members:
        return False
    start, stop = _span(entry)
    return stop - start <= _LARGEST_SAMPLE_BYTES


def _wrong(data: bytes, start: int, stop: int, members: Mapping[str, bytes], entry: Entry) -> Reason | None:
    """What is wrong with bytes [start, stop) of a shard, which hold the members of a sample; None: nothing."""
    if len(data) < stop - start:
        return "truncated"
    headers_crc32 = 0
    for member in entry.members.values():
        end = member.offset - start
        headers_crc32 = zlib.crc32(data[end - BLOCK_BYTES : end], headers_crc32)
    if headers_crc32 != entry.headers_crc32:
        return "changed"
    for extension, member in entry.members.items():
        if member.crc32 is not None and zlib.crc32(members[extension]) != member.crc32:
            return "corrupt"
    return None
