"""Which samples there are: shards, how many samples each holds, and where their bytes lie."""

import hashlib
import io
import json
import logging
import sys
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import IO, cast
from urllib.parse import urlsplit

from data.errors import DataError
from data.offsets import Entry, RangeFile, from_sidecar, read_headers
from data.stream import Storage, join

log = logging.getLogger(__name__)
INDEX_NAME = "index.json"
_READERS = 8
_SCAN_BYTES = 4 << 20
_KEPT_SHARDS = 256  # offsets of this many shards stay in memory


@dataclass(frozen=True, slots=True)
class Shard:
    """url of the tar, samples in it, bytes of it (-1: unknown), url of its offsets sidecar (or None)."""

    url: str
    count: int
    size: int
    offsets_url: str | None = None


class Index:
    """All samples of a data set, by position 0 … len - 1. Offsets are loaded shard by shard, when needed."""

    def __init__(self, shards: Sequence[Shard], storage: Storage) -> None:
        if not sum(shard.count for shard in shards):
            urls = ", ".join(shard.url for shard in shards[:3])
            raise DataError(f"no sample in {len(shards)} shards ({urls}…): check that they are the right files")
        self.shards = list(shards)
        self.storage = storage
        self._ends = list(accumulate(shard.count for shard in shards))
        self._offsets: OrderedDict[int, list[Entry]] = OrderedDict()

    @classmethod
    def load(cls, urls: str | Sequence[str], storage: Storage) -> "Index":
        """Index the shards that `urls` stand for.

        urls: folders, index.json files, shards, with braces and * patterns. Where a folder holds an
        index.json (as webdataset's wids writes it, with our offsets when `prepare` made it) that is used;
        else the headers of every tar are read, and the log says so. Raises DataError when nothing is found.
        """
        shards: list[Shard] = []
        bare: list[str] = []
        for url in [urls] if isinstance(urls, str) else urls:
            index_url = _index_url(url, storage)
            if index_url is not None:
                shards += _read_index(index_url, storage)
            else:
                bare += storage.expand(url)
        if not shards and not bare:
            raise DataError(f"no shard (*.tar) and no {INDEX_NAME} at {urls!r}: check the path")
        scanned = _scan(bare, storage) if bare else []
        shards += [shard for shard, _ in scanned]
        index = cls(shards, storage)
        for number, (_, entries) in enumerate(scanned, start=len(shards) - len(scanned)):
            index._offsets[number] = entries
        return index

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def shard_sizes(self) -> list[int]:
        """Samples in each shard."""
        return [shard.count for shard in self.shards]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the shards' names, bytes and sample counts: the same wherever the data lies."""
        content = [[_basename(shard.url), shard.size, shard.count] for shard in self.shards]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def sample(self, position: int) -> tuple[str, Entry]:
        """Shard URL and entry of the sample at `position`. Raises IndexError outside 0 … len - 1."""
        if not 0 <= position < len(self):
            raise IndexError(f"position={position} is outside 0 … {len(self) - 1}")
        number = bisect_right(self._ends, position)
        start = self._ends[number - 1] if number else 0
        return self.shards[number].url, self._entries(number)[position - start]

    def _entries(self, number: int) -> list[Entry]:
        found = self._offsets.get(number)
        if found is not None:
            return found
        shard = self.shards[number]
        if shard.offsets_url is not None:
            entries = from_sidecar(self.storage.read(shard.offsets_url), shard.offsets_url)
        else:
            entries = _read_tar(shard.url, self.storage)[1]
        if len(entries) != shard.count:
            raise DataError(
                f"{shard.url} holds {len(entries)} samples and its index says {shard.count}: "
                "the shard was changed after it was indexed. Prepare it again, or remove the index"
            )
        self._offsets[number] = entries
        while len(self._offsets) > _KEPT_SHARDS and self.shards[next(iter(self._offsets))].offsets_url:
            self._offsets.popitem(last=False)
        return entries


def indexed_samples(urls: str | Sequence[str], storage: Storage) -> int | None:
    """How many samples the index files at `urls` list; None where one is missing and tars would have to be read."""
    count = 0
    for url in [urls] if isinstance(urls, str) else urls:
        index_url = _index_url(url, storage)
        if index_url is None:
            return None
        count += sum(shard.count for shard in _read_index(index_url, storage))
    return count


def _index_url(url: str, storage: Storage) -> str | None:
    if url.endswith(".json"):
        return url
    is_pattern = any(character in url for character in "{*?[") or url.endswith(".tar")
    index_url = join(url, INDEX_NAME)
    return index_url if not is_pattern and storage.exists(index_url) else None


def _read_index(url: str, storage: Storage) -> list[Shard]:
    folder = url.rpartition("/")[0]
    try:
        content = json.loads(storage.read(url))
        listed = content["shardlist"]
        return [
            Shard(
                _resolve(folder, entry["url"]),
                int(entry["nsamples"]),
                int(entry.get("filesize", -1)),
                _resolve(folder, entry["offsets"]) if "offsets" in entry else None,
            )
            for entry in listed
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{url} is no shard index (wids format): {error!r}. Remove it, or write it again") from error


def _resolve(folder: str, url: str) -> str:
    return url if "://" in url or url.startswith("/") or not folder else join(folder, url)


def _scan(urls: Sequence[str], storage: Storage) -> list[tuple[Shard, list[Entry]]]:
    from tqdm import tqdm

    log.info("no %s: reading the headers of %d shards", INDEX_NAME, len(urls))

    def scan(url: str) -> tuple[Shard, list[Entry]]:
        try:
            return _read_tar(url, storage)
        except DataError as error:
            log.error("shard left out: %s", error)
            return Shard(url, 0, -1), []

    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(scan, urls)
        shown = tqdm(found, total=len(urls), desc="reading tar headers", unit="shard", file=sys.stderr, disable=None)
        return list(shown)


def _read_tar(url: str, storage: Storage) -> tuple[Shard, list[Entry]]:
    size = storage.size(url)
    file = RangeFile(lambda start, stop: storage.read(url, start, stop), size)
    # headers lie between pictures: long reads are cheaper than a request for each header
    entries = read_headers(cast(IO[bytes], io.BufferedReader(file, _SCAN_BYTES)), size, url)
    return Shard(url, len(entries), size), entries


def _basename(url: str) -> str:
    return urlsplit(url).path.rsplit("/", 1)[-1]
