"""What is known of a shard's samples: by the parquet that img2dataset writes beside it, else by their .json."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import IO, Any, cast

from data.errors import DataError, NotFound, StoreUnavailable
from data.offsets import Entry, Member
from data.patterns import beside
from data.stream import Storage
from data.transforms import IMAGE_EXTENSIONS, LARGEST_TEXT_BYTES, BadSample, details_of, size_of_image

log = logging.getLogger(__name__)
Details = Mapping[str, Any]
KEY = "key"
_HEAD_BYTES, _LARGEST_PICTURE_BYTES, _LARGEST_SIDE = 1 << 16, 256 << 20, 1 << 20


class Rows:
    """Some columns of a table of samples, by the samples' keys. A key that several rows have is nobody's."""

    def __init__(self, keys: Sequence[Any], columns: Mapping[str, Sequence[Any]]) -> None:
        self.keys = keys
        self.columns = columns
        twice = {key for key, count in Counter(keys).items() if count > 1}
        self._rows = {key: row for row, key in enumerate(keys) if isinstance(key, str) and key not in twice}

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def details(self, key: str) -> Details:
        """What the row of a sample says. Raises KeyError when it has none of its own."""
        row = self._rows[key]
        return {name: values[row] for name, values in self.columns.items()}


def table_of(shard_url: str) -> str:
    """URL of the parquet beside a shard: 00000.parquet of 00000.tar."""
    return beside(shard_url, ".parquet")


def table_version(shard_url: str, storage: Storage) -> str | None:
    """What tells the parquet beside a shard from another one in its place; None where there is none."""
    try:
        return storage.version(table_of(shard_url))
    except StoreUnavailable:
        raise
    except DataError as error:  # a store may refuse to say that there is none
        if not isinstance(error, NotFound):
            log.info("done without: %s", error)
        return None


def rows_beside(shard_url: str, storage: Storage, columns: Collection[str]) -> Rows | None:
    """These columns of the parquet beside a shard; nothing else of it is read.

    None where there is none, or where it lacks a column, has no keys or can't be read, which the log says.
    """
    from pyarrow import ArrowException, parquet

    url = table_of(shard_url)
    try:
        with storage.open(url) as (file, _):
            # one thread and no reading ahead of it: many of these run side by side, each on a shard of its own
            table = parquet.ParquetFile(cast(IO[bytes], file), pre_buffer=False)
            missing = {KEY, *columns} - set(table.schema_arrow.names)
            if missing:
                log.info("%s has no column %s: its samples' .json are read", url, ", ".join(sorted(missing)))
                return None
            found = table.read([KEY, *sorted({*columns} - {KEY})], use_threads=False)
            return Rows(found[KEY].to_pylist(), {name: found[name].to_pylist() for name in columns})
    except NotFound:
        return None
    except (ArrowException, OSError, ValueError) as error:
        log.warning("%s can't be read as parquet (%s): its samples' .json are read", url, error)
        return None


def json_details(entry: Entry, file: IO[bytes]) -> Details:
    """What a sample's .json says, read from its shard unless it was before; {} without one that can be read."""
    member = entry.members.get("json")
    content = entry.contents.get("json")
    if content is None and member is not None and member.size <= LARGEST_TEXT_BYTES:
        content = _read(file, member, member.size)
    try:
        return details_of({} if content is None else {"json": content})
    except BadSample:
        return {}


def size_told(details: Details) -> tuple[int, int] | None:
    """Width and height of a sample's picture in pixels, as its details have them; None: they don't."""
    width, height = details.get("width"), details.get("height")
    if all(isinstance(side, int | float) and 1 <= side < _LARGEST_SIDE for side in (width, height)):
        return int(width), int(height)  # type: ignore[arg-type]
    return None


def size_seen(entry: Entry, file: IO[bytes]) -> tuple[int, int] | None:
    """Width and height of a sample's picture in pixels, as its first bytes say; None: unknown. file: its shard."""
    member = next((entry.members[kind] for kind in IMAGE_EXTENSIONS if kind in entry.members), None)
    if member is None:
        return None
    for size in (_HEAD_BYTES, _LARGEST_PICTURE_BYTES):  # WebP tells its size to those alone who have all of it
        found = size_of_image(_read(file, member, min(size, member.size)))
        if found is not None or member.size <= size:
            return found
    return None


def _read(file: IO[bytes], member: Member, size: int) -> bytes:
    file.seek(member.offset)
    return file.read(size)
