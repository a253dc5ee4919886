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
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.buckets import LARGEST_NUMBER, Size
from data.errors import DataError, NotFound, Unreadable
from data.offsets import Entry, Offsets
from data.patterns import is_folder, name_of
from data.stream import Storage, join
from data.tar_headers import read_headers

log = logging.getLogger(__name__)
INDEX_NAME = "index.json"
SIDECAR_SUFFIX = ".npz"
_READERS = 8
_KEPT_SHARDS = 128  # offsets of this many shards stay in memory


@dataclass(frozen=True, slots=True)
class Shard:
    """url of the tar, samples in it and bytes of it (-1: unknown), url of its offsets sidecar (or None). sizes: of the
    buckets that its samples were sorted into, none where they weren't; in_buckets: samples in each."""

    url: str
    count: int = -1
    size: int = -1
    offsets_url: str | None = None
    sizes: tuple[Size, ...] = ()
    in_buckets: tuple[int, ...] = ()


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
        content = [[name_of(shard.url), shard.size, shard.count] for shard in self.shards]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def sample(self, position: int) -> tuple[str, Entry]:
        """Shard URL and entry of the sample at `position`. Raises IndexError outside 0 … len - 1."""
        if not 0 <= position < len(self):
            raise IndexError(f"position={position} is outside 0 … {len(self) - 1}")
        number = bisect_right(self._ends, position)
        start = self._ends[number - 1] if number else 0
        return self.shards[number].url, self.entries(number)[position - start]

    def sorted_into(self, sizes: Sequence[Size]) -> bool:
        """Whether all samples were sorted into buckets of these sizes when the index was made."""
        return all(shard.sizes == tuple(sizes) for shard in self.shards)

    @cached_property
    def in_buckets(self) -> NDArray[np.int64]:
        """Samples in each bucket, int64 [shards, buckets], of an index that is `sorted_into` any."""
        return np.array([shard.in_buckets for shard in self.shards], dtype=np.int64)

    def entries(self, number: int) -> Offsets:
        """The samples of a shard, by its number. Raises DataError when they aren't what the index says."""
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
                "the shard was changed after it was indexed. Bring it back, or prepare the index again and begin "
                "another run, as a run keeps to its index"
            )
        self._offsets[number] = entries
        while len(self._offsets) > _KEPT_SHARDS and self.shards[next(iter(self._offsets))].offsets_url:
            self._offsets.popitem(last=False)
        return entries


class Part:
    """The samples of an index that are in some of its buckets, by position 0 … len - 1, in the order of the index.

    buckets: numbers of the sizes that the index's samples were sorted into. shard_sizes: int64 [shards], samples of the
    part in each shard.
    """

    def __init__(self, index: Index, buckets: Sequence[int]) -> None:
        self.index = index
        self._is_mine = np.zeros(LARGEST_NUMBER + 1, dtype=np.bool_)
        self._is_mine[list(buckets)] = True
        self.shard_sizes = index.in_buckets[:, buckets].sum(1)
        self._ends = np.cumsum(self.shard_sizes)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def sample(self, position: int) -> tuple[str, Entry]:
        """Shard URL and entry of the sample at `position`. Raises IndexError outside 0 … len - 1."""
        if not 0 <= position < len(self):
            raise IndexError(f"position={position} is outside 0 … {len(self) - 1}")
        number = int(np.searchsorted(self._ends, position, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        entries = self.index.entries(number)
        unsorted = np.zeros(0, dtype=np.int64)
        rows = unsorted if entries.buckets is None else np.flatnonzero(self._is_mine[entries.buckets])
        if len(rows) != self.shard_sizes[number]:
            raise DataError(
                f"{self.index.shards[number].offsets_url} has {len(rows)} samples in these buckets and its index says "
                f"{self.shard_sizes[number]}: prepare the index again"
            )
        return self.index.shards[number].url, entries[int(rows[position - start])]


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


def left_out(urls: str | Sequence[str], storage: Storage) -> dict[str, str]:
    """The shards that the index files at `urls` leave out, with the reason."""
    found: dict[str, str] = {}
    for url in [urls] if isinstance(urls, str) else urls:
        if (index_url := _index_url(url, storage)) is not None:
            content = _content(index_url, storage)
            found |= {
                _resolve(index_url.rpartition("/")[0], shard["url"]): shard["reason"]
                for shard in content.get("left_out", [])
            }
    return found


def _index_url(url: str, storage: Storage) -> str | None:
    if url.endswith(".json"):
        return url
    index_url = join(url, INDEX_NAME)
    return index_url if is_folder(url) and storage.exists(index_url) else None


def _read_index(url: str, storage: Storage) -> list[Shard]:
    folder, content = url.rpartition("/")[0], _content(url, storage)
    try:
        sizes = tuple((int(width), int(height)) for width, height in content.get("buckets", []))
        return [
            Shard(
                _resolve(folder, entry["url"]),
                int(entry["nsamples"]),
                int(entry.get("filesize", -1)),
                _resolve(folder, entry["offsets"]) if entry.get("offsets", "").endswith(SIDECAR_SUFFIX) else None,
                sizes,
                tuple(entry["in_buckets"]) if sizes else (),
            )
            for entry in content["shardlist"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise _no_index(url, error) from error


def _content(url: str, storage: Storage) -> dict[str, Any]:
    try:
        content = json.loads(storage.read(url))
        return {"shardlist": content["shardlist"], **content}
    except (ValueError, KeyError, TypeError) as error:
        raise _no_index(url, error) from error


def _no_index(url: str, error: Exception) -> DataError:
    return DataError(f"{url} is no shard index (wids format): {error!r}. Remove it, or write it again")


def _resolve(folder: str, url: str) -> str:
    return url if "://" in url or url.startswith("/") or not folder else join(folder, url)


def _scan(urls: Sequence[str], storage: Storage) -> list[tuple[Shard, Offsets]]:
    from tqdm import tqdm

    def scan(url: str) -> tuple[Shard, Offsets]:
        try:
            shard, entries = _read_tar(url, storage)
            return shard, Offsets.of(entries)
        except (Unreadable, NotFound) as error:  # whatever else it is, it isn't this shard's
            log.error("shard left out: %s", error)
            return Shard(url, 0), Offsets.of([])

    pool = ThreadPoolExecutor(_READERS)
    try:
        found = pool.map(scan, urls)
        shown = tqdm(found, total=len(urls), desc="reading tar headers", unit="shard", file=sys.stderr, disable=None)
        return list(shown)
    finally:
        pool.shutdown(cancel_futures=True)


def _read_tar(url: str, storage: Storage) -> tuple[Shard, list[Entry]]:
    with storage.open(url) as (file, size):
        entries = read_headers(file, size, url)
    return Shard(url, len(entries), size), entries
