"""From a source to tar shards in LAION layout, with an index that says where each sample lies."""

import json
import logging
import sys
from collections.abc import Mapping
from typing import Any

from data.errors import DataError
from data.shard_writer import write_index, write_shard
from data.sources import Sample, Source
from data.stream import Storage, join

log = logging.getLogger(__name__)
MANIFEST_NAME = "manifest.json"
_VERSION = 1


def prepare(source: Source, url: str, storage: Storage, samples_per_shard: int = 1000) -> dict[str, Any]:
    """Write the source's samples to `url`/train, `url`/heldout or whatever splits it has, and return the manifest.

    Each split holds 00000.tar, 00000.offsets.npz, … and index.json (wids format); each sample is a picture,
    a .txt and a .json. `url`/manifest.json is written last: it is there when everything is. The same source
    gives the same bytes, so a preparation that was cut short is simply run again; one that is complete is
    left as it is. Raises DataError when `url` holds a complete data set of other content.
    """
    if samples_per_shard < 1:
        raise DataError(f"samples_per_shard={samples_per_shard} must be at least 1")
    manifest_url = join(url, MANIFEST_NAME)
    wanted = {
        "version": _VERSION,
        "source": source.name,
        "settings": dict(source.settings),
        "samples_per_shard": samples_per_shard,
        "attribution": source.attribution,
    }
    if storage.exists(manifest_url):
        return _existing(manifest_url, wanted, storage)
    splits = {name: _Split(name, join(url, name), storage, samples_per_shard, source) for name in source.splits}
    _write_samples(source, splits)
    for split in splits.values():
        split.finish()
    manifest = {
        **wanted,
        "splits": {name: split.summary() for name, split in splits.items()},
        "dropped": dict(source.dropped),
    }
    storage.write(manifest_url, _json(manifest))
    log.info("prepared %s at %s: %s", source.name, url, manifest["splits"])
    return manifest


def _existing(manifest_url: str, wanted: Mapping[str, object], storage: Storage) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(storage.read(manifest_url))
    except ValueError as error:
        raise DataError(f"{manifest_url} is no manifest: {error}. Choose another url, or remove it") from error
    for key, value in wanted.items():
        if found.get(key) != value:
            raise DataError(
                f"{manifest_url} has {key}={found.get(key)!r}, asked for is {value!r}: "
                "choose another url, or remove the data set there"
            )
    log.info("%s is complete already", manifest_url)
    return found


def _write_samples(source: Source, splits: Mapping[str, "_Split"]) -> None:
    from tqdm import tqdm

    shown = tqdm(
        source,
        total=len(source),
        desc=f"preparing {source.name}",
        unit="sample",
        file=sys.stderr,
        mininterval=0.5 if sys.stderr.isatty() else 10.0,  # a log file wants few lines
    )
    for sample in shown:
        splits[source.split(sample.key)].add(sample)


class _Split:
    """Collects samples into shards and writes each shard when it is full."""

    def __init__(self, name: str, url: str, storage: Storage, samples_per_shard: int, source: Source) -> None:
        self.name = name
        self.url = url
        self.storage = storage
        self.samples_per_shard = samples_per_shard
        self.source = source
        self.shards: list[dict[str, Any]] = []
        self.samples = 0
        self.bytes = 0
        self._waiting: list[Sample] = []

    def add(self, sample: Sample) -> None:
        if not sample.key or any(character in sample.key for character in "./\\"):
            raise DataError(f"key={sample.key!r} of {self.source.name} must be a file name without dots and slashes")
        self._waiting.append(sample)
        if len(self._waiting) == self.samples_per_shard:
            self._write()

    def finish(self) -> None:
        if self._waiting:
            self._write()
        write_index(self.url, f"{self.source.name} {self.name}", self.source.attribution, self.shards, self.storage)

    def summary(self) -> dict[str, int]:
        return {"samples": self.samples, "shards": len(self.shards), "bytes": self.bytes}

    def _write(self) -> None:
        keys = {sample.key for sample in self._waiting}
        if len(keys) != len(self._waiting):
            raise DataError(f"{self.source.name} gives the same key twice, near {self._waiting[-1].key!r}")
        name = f"{len(self.shards):05d}"
        shard = write_shard(self.url, name, [(sample.key, _members(sample)) for sample in self._waiting], self.storage)
        self.shards.append(shard)
        self.samples += shard["nsamples"]
        self.bytes += shard["filesize"]
        self._waiting = []


def _members(sample: Sample) -> dict[str, bytes]:
    details = {"key": sample.key, "caption": sample.caption, **sample.metadata}
    return {
        sample.extension: sample.image,
        "txt": sample.caption.encode(),
        "json": json.dumps(details, ensure_ascii=False, sort_keys=True).encode(),
    }


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
