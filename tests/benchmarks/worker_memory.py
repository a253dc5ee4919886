"""Peak resident memory of a data worker, beside its bound.

    python -m tests.benchmarks.worker_memory

Reads shards over HTTP, with a cache of 64 MiB: of small pictures, of batches that are larger than the cache, and of the
largest samples that are read at all (a quarter of a gigabyte; 64 million pixels with transparency). The bound is that
of docs/data.md.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

MIB = 1 << 20
CACHE, BATCH = 64 * MIB, 32
SIDE = 64
PIXELS = 8000 * 8000
LARGEST = 250 * MIB
LIBRARIES = 400 * MIB
"""Python and torch, most of which a worker shares with the rank that started it, and connections."""


def bound(sample_bytes: int, pixels: int, batch_bytes: int) -> int:
    """Bytes that a worker may take: the cache and half of it on its way, the largest sample three times, 32 bytes for
    each of its pixels, and batches that wait."""
    return CACHE * 3 // 2 + 3 * sample_bytes + 32 * pixels + 4 * batch_bytes + LIBRARIES


def shards(kind: str) -> tuple[list[dict[str, bytes]], int, int]:
    """Members of each shard, and the bytes and pixels of their largest sample."""
    from PIL import Image

    small = _small()
    if kind == "small pictures":
        return [{"0.png": small}] * BATCH, len(small), 64
    if kind == "large batches":
        return [{"0.png": small, "0.npy": bytes(8 * MIB)}] * BATCH, 8 * MIB, 64
    buffer = io.BytesIO()
    Image.new("RGBA", (8000, 8000), (200, 100, 0, 128)).save(buffer, "PNG", compress_level=1)
    return [{"0.png": buffer.getvalue()}, {"0.png": small, "0.npy": bytes(LARGEST)}], LARGEST, PIXELS


def _small() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def measure() -> dict[str, dict[str, float]]:
    """MiB by kind: what a worker took, and its bound."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
    from faulty import WebServer
    from made_files import make_tar

    from data.indexing import build_index
    from data.stream import Storage

    found = {}
    for kind in ("small pictures", "large batches", "largest samples"):
        with tempfile.TemporaryDirectory() as folder:
            contents, sample_bytes, pixels = shards(kind)
            for number, members in enumerate(contents):
                Path(folder, f"{number:02d}.tar").write_bytes(make_tar(members))
            del contents, members
            build_index(folder, folder, Storage())
            with WebServer(folder, True) as server:
                taken = _taken_by_worker("http://{}:{}/index.json".format(*server.address))
        most = bound(sample_bytes, pixels, BATCH * SIDE * SIDE * 3)
        found[kind] = {"taken": taken / MIB, "bound": most / MIB}
    return found


def _taken_by_worker(url: str) -> int:
    """Bytes, after a few batches."""
    import multiprocessing

    from data.index import Index
    from data.loader import Loader
    from data.mixture import IndexedSource
    from data.stream import Storage
    from tests.resident import resident

    storage = Storage(cache_bytes=CACHE)
    index = Index.load(url, storage)
    count = min(BATCH, len(index))
    batches = Loader([IndexedSource(index)], storage, 0, SIDE, {}, count, count, workers=1, batches_ahead=1).batches()
    assert not next(batches).faults
    [worker] = multiprocessing.active_children()
    peak = resident("VmHWM", worker.pid)
    batches.close()
    return peak


def in_fresh_process() -> Mapping[str, Mapping[str, float]]:
    """What `measure` finds in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.worker_memory", "measure"]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    found: Mapping[str, Mapping[str, float]] = json.loads(ended.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Prints a line for each kind."""
    if sys.argv[1:] == ["measure"]:
        print(json.dumps(measure()))
        return
    for kind, row in in_fresh_process().items():
        print(f"{kind}: {row['taken']:.0f} MiB, at most {row['bound']:.0f}")


if __name__ == "__main__":
    main()
