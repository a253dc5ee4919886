"""Tar shards with their offsets, and the index that lists them."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import IO, Any, cast

from data.errors import DataError
from data.index import INDEX_NAME
from data.offsets import Offsets
from data.stream import Storage, join
from data.tar_headers import read_headers


def write_shard(
    folder: str, name: str, samples: Sequence[tuple[str, Mapping[str, bytes]]], storage: Storage
) -> dict[str, Any]:
    """Writes samples, each a key and its members by extension, as `folder`/`name`.tar with name.offsets.npz beside it.

    The same samples give the same bytes. Returns what an index lists of the shard. Raises DataError when samples can't
    be told apart by their keys.
    """
    data = _tar(samples)
    entries = read_headers(cast(IO[bytes], io.BytesIO(data)), len(data), f"{name}.tar", checksums=True)
    if [entry.key for entry in entries] != [key for key, _ in samples]:
        raise DataError(f"{join(folder, name)}.tar: samples have the same key, near {samples[-1][0]!r}")
    storage.write(join(folder, f"{name}.tar"), data)
    storage.write(join(folder, f"{name}.offsets.npz"), Offsets.of(entries).to_sidecar())
    return {
        "url": f"{name}.tar",
        "nsamples": len(entries),
        "filesize": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "offsets": f"{name}.offsets.npz",
    }


def write_index(
    folder: str, name: str, description: str, shards: Sequence[Mapping[str, Any]], storage: Storage
) -> None:
    """Writes `folder`/index.json (wids format) of shards as `write_shard` gave them."""
    index = {"wids_version": 1, "name": name, "description": description, "shardlist": shards}
    storage.write(join(folder, INDEX_NAME), (json.dumps(index, indent=1, ensure_ascii=False) + "\n").encode())


def _tar(samples: Sequence[tuple[str, Mapping[str, bytes]]]) -> bytes:
    import webdataset

    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, encoder=False, user="", group="", mode=0o644, mtime=0.0) as writer:
        for key, members in samples:
            writer.write({"__key__": key, **members})
    return buffer.getvalue()
