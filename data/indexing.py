"""Builds an index: tar headers become offsets, shard by shard, in parallel; a build that was cut short goes on."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

from data.errors import DataError
from data.index import INDEX_NAME, SIDECAR_SUFFIX, Shard, find_shards
from data.offsets import Entry, Offsets, read_headers
from data.processes import work_through
from data.stream import Storage, join
from data.transforms import BadSample, details_of
from data.where import Where

log = logging.getLogger(__name__)
_CHUNK = 4  # shards that a process takes at a time


@dataclass(frozen=True)
class _Done:
    """What is known of one shard. left_out: samples by the field whose conditions they didn't fulfil."""

    count: int
    size: int
    left_out: dict[str, int]


def build_index(
    urls: str | Sequence[str],
    folder: str,
    storage: Storage,
    where: Where | None = None,
    checksums: bool = False,
    processes: int = 1,
    replace_bad_shards: bool = True,
) -> str:
    """Writes an index of the shards that `urls` stand for to `folder`, and returns the URL of its index.json.

    It lists the samples that fulfil `where` alone, so that an epoch of it is every one of them once. Only headers are
    read, and the .json of each sample where it is asked about; checksums: everything, so that a single changed byte
    is noticed when the shard is read. Each shard's offsets are a file of their own beside the index: shards that have
    one are not read again. Shards that an index lists already, with offsets, are taken from there unless `where` asks.

    replace_bad_shards: one that can't be read is left out, and named in the log; False: it is an error.
    Raises DataError when no sample is left.
    """
    where = where or Where({})
    shards = find_shards(urls, storage)
    read = [shard for shard in shards if shard.offsets_url is None or where or checksums]
    work = partial(_index_shard, folder, storage, where, checksums)
    bare = [shard.url for shard in read]
    found = dict(zip(bare, work_through(work, bare, processes, "indexing", "shard", _CHUNK), strict=True))
    listed, left_out = [], Counter[str]()
    for shard in shards:
        done = found.get(shard.url)
        if isinstance(done, DataError):
            if not replace_bad_shards:
                raise done
            log.error("shard left out: %s", done)
        elif done is not None:
            left_out += Counter(done.left_out)
            sidecar = join(folder, _sidecar_name(shard.url, where, checksums))
            listed.append(Shard(shard.url, done.count, done.size, sidecar))
        else:
            listed.append(shard)
    _report(listed, left_out, folder)
    content = {
        "wids_version": 1,
        "name": folder,
        "description": f"samples where {json.dumps(where.predicates)}" if where else "",
        "shardlist": [_listed(shard, folder) for shard in listed],
    }
    index_url = join(folder, INDEX_NAME)
    storage.write(index_url, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    return index_url


def _index_shard(folder: str, storage: Storage, where: Where, checksums: bool, url: str) -> _Done | DataError:
    """Writes the offsets of one shard, and a note of what was found, unless they are there. Errors are returned."""
    sidecar = join(folder, _sidecar_name(url, where, checksums))
    note = sidecar.removesuffix(SIDECAR_SUFFIX) + ".json"
    try:
        if storage.exists(note):
            done = _Done(**json.loads(storage.read(note)))
            if storage.size(url) == done.size:
                return done
        with storage.open(url) as (file, size):
            entries = read_headers(file, size, url, checksums, ("json",) if where else ())
        kept, left_out = _filtered(entries, where)
        done = _Done(len(kept), size, left_out)
        storage.write(sidecar, Offsets.of(kept).to_sidecar())
        storage.write(note, json.dumps(asdict(done)).encode())
    except DataError as error:
        return error
    return done


def _filtered(entries: list[Entry], where: Where) -> tuple[list[Entry], dict[str, int]]:
    kept, left_out = [], Counter[str]()
    for entry in entries:
        try:
            failing = where.failing(details_of(entry.contents))
        except BadSample:
            failing = where.failing({})
        if failing is None:
            kept.append(entry)
        else:
            left_out[failing] += 1
    return kept, dict(left_out)


def _report(shards: Sequence[Shard], left_out: Counter[str], folder: str) -> None:
    kept = sum(shard.count for shard in shards)
    reasons = ", ".join(f"{count} by {field}" for field, count in left_out.most_common())
    told = f"{kept} samples in {len(shards)} shards" + (f"; left out: {reasons}" if reasons else "")
    if not kept:
        raise DataError(
            f"no sample to index for {folder}: {told}. Check that these are the right shards and conditions"
        )
    log.info("index %s: %s", folder, told)


def _listed(shard: Shard, folder: str) -> dict[str, object]:
    entry: dict[str, object] = {"url": _relative(shard.url, folder), "nsamples": shard.count, "filesize": shard.size}
    return entry | ({"offsets": _relative(shard.offsets_url, folder)} if shard.offsets_url else {})


def _relative(url: str, folder: str) -> str:
    """Names beside the index stay true when both are moved."""
    return url.removeprefix(join(folder, ""))


def _sidecar_name(url: str, where: Where, checksums: bool) -> str:
    """The shard's own name where that tells it, so that a build for other conditions takes nothing for its own."""
    stem = url.rpartition("/")[2].removesuffix(".tar")
    told = hashlib.sha256(json.dumps([url, where.predicates, checksums]).encode()).hexdigest()[:12]
    return f"{stem}-{told}.offsets{SIDECAR_SUFFIX}"
