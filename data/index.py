"""Which samples there are: shards, how many samples each holds, and where their bytes lie."""

import hashlib
import json
import logging
import sys
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from urllib.parse import urlsplit

from data.errors import DataError
from data.offsets import Entry, Offsets, read_headers
from data.stream import Storage, join

log = logging.getLogger(__name__)
INDEX_NAME = "index.json"
SIDECAR_SUFFIX = ".npz"
_READERS = 8
_KEPT_SHARDS = 128  # offsets of this many shards stay in memory


@dataclass(frozen=True, slots=True)
class Shard:
    """url of the tar, samples in it and bytes of it (-1: unknown), url of its offsets sidecar (or None)."""

    url: str
    count: int = -1
    size: int = -1
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
        self._offsets: OrderedDict[int, Offsets] = OrderedDict()

    @classmethod
    def load(cls, urls: str | Sequence[str], storage: Storage) -> "Index":
        """Index the shards that `urls` stand for.

        urls: folders, index.json files, shards, with braces and * patterns. Where a folder holds an
        index.json (as webdataset's wids writes it, with our offsets when `prepare` made it) that is used;
        else the headers of every tar are read, and the log says so. Raises DataError when nothing is found.
        """
        listed = find_shards(urls, storage)
        bare = [number for number, shard in enumerate(listed) if shard.count < 0]
        offsets = {}
        if bare:
            log.info("no %s: reading the headers of %d shards", INDEX_NAME, len(bare))
            for number, (shard, found) in zip(bare, _scan([listed[n].url for n in bare], storage), strict=True):
                listed[number], offsets[number] = shard, found
        index = cls(listed, storage)
        index._offsets.update(offsets)
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

    def _entries(self, number: int) -> Offsets:
        found = self._offsets.get(number)
        if found is not None:
            return found
        shard = self.shards[number]
        if shard.offsets_url is not None:
            entries = Offsets.from_sidecar(self.storage.read(shard.offsets_url), shard.offsets_url)
        else:
            entries = Offsets.of(_read_tar(shard.url, self.storage)[1])
        if len(entries) != shard.count:
            raise DataError(
                f"{shard.url} holds {len(entries)} samples and its index says {shard.count}: "
                "the shard was changed after it was indexed. Prepare it again, or remove the index"
            )
        self._offsets[number] = entries
        while len(self._offsets) > _KEPT_SHARDS and self.shards[next(iter(self._offsets))].offsets_url:
            self._offsets.popitem(last=False)
        return entries


def find_shards(urls: str | Sequence[str], storage: Storage) -> list[Shard]:
    """The shards that `urls` stand for, as `Index.load` takes them; with count -1 where no index lists them.

    Raises DataError when nothing is found.
    """
    shards: list[Shard] = []
    for url in [urls] if isinstance(urls, str) else urls:
        index_url = _index_url(url, storage)
        shards += (
            [Shard(found) for found in storage.expand(url)] if index_url is None else _read_index(index_url, storage)
        )
    if not shards:
        raise DataError(f"no shard (*.tar) and no {INDEX_NAME} at {urls!r}: check the path")
    return shards


def indexed_samples(urls: str | Sequence[str], storage: Storage) -> int:
    """How many samples the index files at `urls` list."""
    return sum(shard.count for shard in find_shards(urls, storage))


def _index_url(url: str, storage: Storage) -> str | None:
    if url.endswith(".json"):
        return url
    is_pattern = any(character in url for character in "{*?[") or url.endswith((".tar", ".txt"))
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
                _resolve(folder, entry["offsets"]) if entry.get("offsets", "").endswith(SIDECAR_SUFFIX) else None,
            )
            for entry in listed
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{url} is no shard index (wids format): {error!r}. Remove it, or write it again") from error


def _resolve(folder: str, url: str) -> str:
    return url if "://" in url or url.startswith("/") or not folder else join(folder, url)


def _scan(urls: Sequence[str], storage: Storage) -> list[tuple[Shard, Offsets]]:
    from tqdm import tqdm

    def scan(url: str) -> tuple[Shard, Offsets]:
        try:
            shard, entries = _read_tar(url, storage)
            return shard, Offsets.of(entries)
        except DataError as error:
            log.error("shard left out: %s", error)
            return Shard(url, 0), Offsets.of([])

    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(scan, urls)
        shown = tqdm(found, total=len(urls), desc="reading tar headers", unit="shard", file=sys.stderr, disable=None)
        return list(shown)


def _read_tar(url: str, storage: Storage) -> tuple[Shard, list[Entry]]:
    with storage.open(url) as (file, size):
        entries = read_headers(file, size, url)
    return Shard(url, len(entries), size), entries


def _basename(url: str) -> str:
    return urlsplit(url).path.rsplit("/", 1)[-1]
