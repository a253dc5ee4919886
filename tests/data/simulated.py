"""A data set of LAION-400M's size that is nowhere: its index, offsets and shards are computed when they are read."""

import io
import json

import numpy as np
from made_files import make_png, make_tar
from numpy.typing import NDArray

from data.buckets import Buckets
from data.offsets import Entry, Offsets
from data.stream import Storage
from data.tar_headers import read_headers

SHARDS, SAMPLES_PER_SHARD = 41_400, 10_000
FOLDER = "simulated://laion"


class SimulatedStorage(Storage):
    """Shards of equal samples; a shard's bytes are one sample's bytes over and over.

    buckets: that the samples are sorted into, unevenly and alike in each shard; None: they aren't.
    """

    def __init__(self, buckets: Buckets | None = None) -> None:
        super().__init__()
        tar = make_tar({"sample.png": make_png(1), "sample.txt": b"a picture", "sample.json": b"{}"})
        [entry] = read_headers(io.BytesIO(tar), len(tar), "simulated", checksums=True)
        end = max(member.offset + member.size for member in entry.members.values())
        self.sample = tar[: -(-end // 512) * 512]
        found = None
        if buckets is not None:
            raw = np.random.default_rng(0).normal(len(buckets.sizes) / 2, 1.5, SAMPLES_PER_SHARD)
            found = raw.clip(0, len(buckets.sizes) - 1).astype(np.uint8)
        self.sidecar = _sidecar(entry, len(self.sample), found)
        self.index = _index(buckets, found)
        self.reads: list[str] = []

    def exists(self, url: str) -> bool:
        return url.endswith("index.json")

    def prefetch(self, ranges: object) -> None:
        pass

    def read(self, url: str, start: int = 0, stop: int | None = None) -> bytes:
        self.reads.append(url)
        if stop is None:
            return self.index if url.endswith("index.json") else self.sidecar
        size = len(self.sample)
        first, last = start // size, -(-stop // size)
        return (self.sample * (last - first))[start - first * size : stop - first * size]


def _sidecar(entry: Entry, sample_bytes: int, buckets: NDArray[np.uint8] | None) -> bytes:
    starts = np.arange(SAMPLES_PER_SHARD, dtype=np.int64) * sample_bytes
    members = {
        extension: np.stack(
            [starts + member.offset, np.full_like(starts, member.size), np.full_like(starts, member.crc32 or 0)], 1
        )
        for extension, member in entry.members.items()
    }
    return Offsets(
        np.array([f"{number:09d}".encode() for number in range(SAMPLES_PER_SHARD)]),
        members,
        np.full(SAMPLES_PER_SHARD, entry.headers_crc32, dtype=np.uint32),
        np.zeros(SAMPLES_PER_SHARD, dtype=np.bool_),
        buckets,
    ).to_sidecar()


def _index(buckets: Buckets | None, found: NDArray[np.uint8] | None) -> bytes:
    sizes = () if buckets is None else buckets.sizes
    counts = {} if found is None else {"in_buckets": np.bincount(found, minlength=len(sizes)).tolist()}
    shards = [
        {
            "url": f"{number:05d}.tar",
            "nsamples": SAMPLES_PER_SHARD,
            "filesize": 400_000_000,
            "offsets": f"{number:05d}-0123456789ab.offsets.npz",
            **counts,
        }
        for number in range(SHARDS)
    ]
    content = {"wids_version": 1, "name": "simulated", "buckets": sizes, "shardlist": shards}
    return json.dumps(content, indent=1).encode()
