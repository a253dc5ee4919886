"""Builds an index: tar headers become offsets, shard by shard, in parallel; a build that was cut short goes on."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import IO

import numpy as np

from data.buckets import Buckets, Size
from data.errors import DataError, NotFound, Unreadable
from data.index import INDEX_NAME, SIDECAR_SUFFIX, Shard, find_shards, left_out
from data.metadata import Rows, json_details, rows_beside, size_seen, size_told, table_of, table_version
from data.offsets import Entry, Offsets
from data.patterns import name_of
from data.processes import work_through
from data.stream import Storage, join
from data.tar_headers import read_headers
from data.where import Where

log = logging.getLogger(__name__)
_CHUNK = 4  # shards that a process takes at a time
ODD = {
    "no_row": "samples have no row of their own key in the parquet beside their shard: judged by their .json",
    "no_sample": "rows of parquet files have no sample in their shard, as pictures that were never fetched",
    "no_size": "pictures have no size that anything tells: sorted as squares",
}


@dataclass(frozen=True)
class Contents:
    """What an index is to say of samples, and which it is to list.

    where: conditions of those. buckets: sizes to sort them into, or None. checksums: read everything, so that a single
    changed byte is noticed when the shard is read.
    """

    where: Where = field(default_factory=lambda: Where({}))
    buckets: Buckets | None = None
    checksums: bool = False

    @property
    def fields(self) -> set[str]:
        """What has to be known of a sample."""
        return self.where.fields | ({"width", "height"} if self.buckets is not None else set())

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Of the buckets."""
        return () if self.buckets is None else self.buckets.sizes


@dataclass(frozen=True)
class _Done:
    """What is known of one shard.

    offsets_url: of its sidecar, relative to the index. size: bytes of the shard. count: of samples that are listed.
    left_out: samples by the field whose conditions they didn't fulfil. unknown: fields that conditions are about and no
    sample has. by_table: samples that were judged by the parquet beside the shard. odd: how many keys are at odds, by a
    kind of ODD, and examples: the first of each. in_buckets: samples in each bucket.
    """

    offsets_url: str
    size: int
    count: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    by_table: int = 0
    odd: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    in_buckets: list[int] = field(default_factory=list)


def build_index(
    urls: str | Sequence[str],
    folder: str,
    storage: Storage,
    where: Where | None = None,
    checksums: bool = False,
    processes: int = 1,
    replace_bad_shards: bool = True,
    buckets: Buckets | None = None,
) -> str:
    """Writes an index of the shards that `urls` stand for to `folder`, and returns the URL of its index.json.

    It lists the samples that fulfil `where` alone, so that an epoch of it is every one of them once, and says which of
    `buckets` each is in. Shards that an index lists already, with offsets, are taken from there, and with them which
    samples there are; of others only headers are read. What conditions and buckets ask about is read from the parquet
    beside a shard, where it has all of it, else from each sample's .json, and a size from the picture's first bytes
    where that is silent. checksums: read everything, so that a single changed byte is noticed when the shard is read.
    Each shard's offsets are a file of their own beside the index, which stays as it is: shards that have one are not
    read again, and one that was written anew gets another.

    replace_bad_shards: one that is gone or no tar is left out, and named in the log and in the index; False: it is an
    error. Raises DataError when no sample is left, and when the store fails or refuses a shard, which may be good.
    """
    contents = Contents(where or Where({}), buckets, checksums)
    shards = find_shards(urls, storage)
    asked = bool(contents.fields) or checksums
    read = [shard for shard in shards if shard.offsets_url is None or asked]
    work = partial(_index_shard, folder, storage, contents)
    results = work_through(work, read, processes, "indexing", "shard", _CHUNK)
    found = {shard.url: done for shard, done in zip(read, results, strict=True)}
    listed, dones, bad = [], [], left_out(urls, storage)
    for shard in shards:
        done = found.get(shard.url)
        if isinstance(done, DataError):
            if not replace_bad_shards:
                raise done
            log.error("shard left out: %s", done)
            bad[shard.url] = str(done)
        elif done is not None:
            dones.append((shard, done))
            sidecar = join(folder, done.offsets_url)
            listed.append(Shard(shard.url, done.count, done.size, sidecar, contents.sizes, tuple(done.in_buckets)))
        else:
            listed.append(shard)
    _report(listed, dones, bad, contents.where, folder)
    sizes = listed[0].sizes if all(shard.sizes == listed[0].sizes for shard in listed) else ()
    content = {
        "wids_version": 1,
        "name": folder,
        "description": f"samples where {json.dumps(contents.where.predicates)}" if where else "",
        **({"buckets": sizes} if sizes else {}),
        "shardlist": [_listed(shard, folder) for shard in listed],
        **({"left_out": [{"url": _relative(url, folder), "reason": why} for url, why in bad.items()]} if bad else {}),
    }
    index_url = join(folder, INDEX_NAME)
    storage.write(index_url, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    return index_url


def _index_shard(folder: str, storage: Storage, contents: Contents, shard: Shard) -> _Done | DataError:
    """Writes the offsets of one shard, and a note of what was found, unless they are there.

    An error that is this shard's own is returned; one of the store is raised.
    """
    try:
        table = table_version(shard.url, storage) if contents.fields else None
        name = _sidecar_name(shard, contents, storage.version(shard.url), table)
        note = join(folder, name.removesuffix(SIDECAR_SUFFIX) + ".json")
        if storage.exists(note):
            return _Done(**json.loads(storage.read(note)))
        rows = None if table is None else rows_beside(shard.url, storage, contents.fields)
        with storage.open(shard.url) as (file, size):
            samples = _samples(shard, size, file, storage, contents, with_json=rows is None)
            offsets, done = _sorted(samples, rows, file, contents, _Done(name, size))
    except (NotFound, Unreadable) as error:
        return error
    storage.write(join(folder, name), offsets.to_sidecar())
    storage.write(note, json.dumps(asdict(done)).encode())
    return done


def _samples(
    shard: Shard, size: int, file: IO[bytes], storage: Storage, contents: Contents, with_json: bool
) -> Offsets | list[Entry]:
    """Those that an index lists of a shard already, unless it is another one by now; else those that are in it."""
    if shard.offsets_url is not None and shard.size == size and not contents.checksums:
        with suppress(NotFound):
            return Offsets.from_sidecar(storage.read(shard.offsets_url), shard.offsets_url)
    wanted = ("json",) if contents.fields and with_json else ()
    return read_headers(file, size, shard.url, contents.checksums, wanted)


def _sorted(
    samples: Offsets | list[Entry], rows: Rows | None, file: IO[bytes], contents: Contents, done: _Done
) -> tuple[Offsets, _Done]:
    """The samples of a shard that are to be listed, in their buckets, and what was found, beyond what `done` says."""
    offsets = samples if isinstance(samples, Offsets) else Offsets.of(samples)
    if not contents.fields:
        return offsets, replace(done, count=len(offsets))
    keys = [key.decode() for key in offsets.keys.tolist()]
    matched = {key for key, count in Counter(keys).items() if count == 1 and rows is not None and key in rows}
    kept, left_out, odd = np.ones(len(keys), dtype=np.bool_), Counter[str](), _Odd()
    sizes: list[Size | None] = []
    unknown = set(contents.where.fields)
    for position, key in enumerate(keys):
        if rows is not None and key in matched:
            details = rows.details(key)
        else:
            details = json_details(samples[position], file)
            if rows is not None:
                odd.note("no_row", key)
        unknown -= {name for name in unknown if details.get(name) is not None}
        if (failing := contents.where.failing(details)) is not None:
            left_out[failing] += 1
            kept[position] = False
        if contents.buckets is not None:
            size = size_told(details) or (size_seen(samples[position], file) if kept[position] else None)
            sizes.append(size)
            if size is None and kept[position]:
                odd.note("no_size", key)
    if rows is not None and len(rows.keys) > len(matched):
        odd.note("no_sample", str(next(key for key in rows.keys if key not in matched)), len(rows.keys) - len(matched))
    buckets = None if contents.buckets is None else contents.buckets.numbers(sizes)
    offsets = offsets.only(kept, buckets)
    in_buckets = [] if offsets.buckets is None else np.bincount(offsets.buckets, minlength=len(contents.sizes)).tolist()
    return offsets, replace(
        done,
        count=len(offsets),
        left_out=dict(left_out),
        unknown=sorted(unknown),
        by_table=len(matched),
        odd=odd.counts,
        examples=odd.examples,
        in_buckets=in_buckets,
    )


class _Odd:
    """Counts keys that are at odds, by a kind of ODD, and keeps the first of each."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, str] = {}

    def note(self, kind: str, key: str, count: int = 1) -> None:
        """Of so many keys, this is the first."""
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.examples.setdefault(kind, key)


def _report(
    shards: Sequence[Shard],
    dones: Sequence[tuple[Shard, _Done]],
    bad: Mapping[str, str],
    where: Where,
    folder: str,
) -> None:
    kept = sum(shard.count for shard in shards)
    left_out = sum((Counter(done.left_out) for _, done in dones), Counter[str]())
    reasons = ", ".join(f"{count} by {field}" for field, count in left_out.most_common())
    told = f"{kept} samples in {len(shards)} shards" + (f"; left out: {reasons}" if reasons else "")
    told += f"; {len(bad)} shards left out, which the index names" if bad else ""
    if not kept:
        raise DataError(
            f"no sample to index for {folder}: {told}. Check that these are the right shards and conditions"
        )
    log.info("index %s: %s", folder, told)
    for name in sorted(where.fields):
        if dones and all(name in done.unknown for _, done in dones):
            log.warning("no sample has the field %r that a condition is about: check its name", name)
    if by_table := sum(done.by_table for _, done in dones):
        log.info("%d samples were judged by the parquet files beside their shards", by_table)
    for kind, meaning in ODD.items():
        odd = [(shard, done) for shard, done in dones if kind in done.odd]
        if odd:
            first = f"{odd[0][1].examples[kind]} of {table_of(odd[0][0].url)}"
            level = logging.INFO if kind == "no_sample" else logging.WARNING
            log.log(level, "%d %s; the first: %s", sum(done.odd[kind] for _, done in odd), meaning, first)


def _listed(shard: Shard, folder: str) -> dict[str, object]:
    entry: dict[str, object] = {"url": _relative(shard.url, folder), "nsamples": shard.count, "filesize": shard.size}
    entry |= {"offsets": _relative(shard.offsets_url, folder)} if shard.offsets_url else {}
    return entry | ({"in_buckets": shard.in_buckets} if shard.sizes else {})


def _relative(url: str, folder: str) -> str:
    """Names beside the index stay true when both are moved; others have to be true from anywhere."""
    name = url.removeprefix(join(folder, ""))
    return os.path.abspath(url) if name == url and "://" not in url else name


def _sidecar_name(shard: Shard, contents: Contents, version: str, table: str | None) -> str:
    """The shard's own name and a hash, so that a build of other contents, or of a shard that was written anew, takes
    nothing for its own and overwrites nothing that another index lists. version, table: of it and of its parquet."""
    stem = name_of(shard.url).removesuffix(".tar")
    told: list[object] = [shard.url, contents.where.predicates, contents.checksums, version, table]
    told += [contents.sizes] if contents.sizes else []
    told += [shard.offsets_url] if shard.offsets_url is not None and contents.fields else []
    return f"{stem}-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]}.offsets{SIDECAR_SUFFIX}"
