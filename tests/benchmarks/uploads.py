"""Checkpoint files to a store and back, beside s3fs doing the same. Takes a minute or two.

    python -m tests.benchmarks.uploads [--folder DIR] [--megabytes 512] [--rounds 3]

One file of random bytes, as a rank has one of a checkpoint, to the embedded store (SeaweedFS) on this machine, which
takes most of the cores itself: what is measured is how well it is used. Rounds alternate; medians. On its way back the
file counts when it is on the disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import s3fs

from data.store import EmbeddedStore
from data.transfer import Transfers
from tests.benchmarks.demo import show

CHUNK_BYTES = 1 << 20


def main() -> None:
    """Prints one line a figure: what, measured, required."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write; a new folder below it, removed afterwards")
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ldm-uploads-", dir=arguments.folder) as temporary:
        folder = Path(temporary)
        file, size = folder / "file", arguments.megabytes * CHUNK_BYTES
        with file.open("wb") as made:
            for _ in range(arguments.megabytes):
                made.write(os.urandom(CHUNK_BYTES))
        with EmbeddedStore(folder / "store") as store, mock.patch.dict(os.environ, store.environment):
            seconds = measure(store.url, file, size, arguments.rounds)
    rate = {name: size / 1e6 / statistics.median(found) for name, found in seconds.items()}
    table = []
    for way in ("there", "back"):
        ours, theirs = rate[f"ours, {way}"], rate[f"s3fs, {way}"]
        table += [
            (f"{arguments.megabytes} MiB {way}", f"{ours:.0f} MB/s", ""),
            ("  s3fs", f"{theirs:.0f} MB/s", ""),
            ("  ratio", f"{ours / theirs:.2f}", ""),
        ]
    show(table)


def measure(url: str, file: Path, size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, by who brought the file and which way."""
    transfers, theirs = Transfers(), s3fs.S3FileSystem()
    back = file.with_name("back")

    def fetch_by_s3fs() -> None:
        theirs.get_file(f"{url}/theirs", str(back))
        with back.open("rb") as fetched:
            os.fsync(fetched.fileno())

    ways: dict[str, Callable[[], object]] = {
        "ours, there": lambda: transfers.upload(file, f"{url}/ours"),
        "s3fs, there": lambda: theirs.put_file(str(file), f"{url}/theirs"),
        "ours, back": lambda: transfers.download(f"{url}/ours", back, size),
        "s3fs, back": fetch_by_s3fs,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            os.sync()
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
            assert not name.endswith("back") or back.stat().st_size == size
            back.unlink(missing_ok=True)
    return seconds


if __name__ == "__main__":
    main()
