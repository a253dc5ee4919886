"""How fast photographs become batches: ours, webdataset, MosaicML streaming, loose files, and the decoders alone.

    python -m tests.benchmarks.decode --photos DIR
    python -m tests.benchmarks.decode --photos DIR --sizes 1024x768 --rounds 5 --mosaicml-python PATH

DIR holds tars with photographs (.jpg) and captions (.txt). They are written anew in each of the sizes, as JPEG, to a
temporary folder: as tars like img2dataset's, as loose files, and in an S3 store on this machine. All loaders give
shuffled batches of 32 images, uint8 [3, 256, 256], by the same filter (Lanczos), with captions, by processes of one
thread: without workers, in seconds of one core's time; by one worker, or by two, in seconds by the clock, for which two
free cores are needed. Of several rounds, in each of which all have their turn, the medians are printed, and those of
the rounds' ratios. The program `weed` serves the store.

MosaicML streaming doesn't go with the project's packages; make it an environment of its own:
    python -m venv mosaicml && mosaicml/bin/pip install mosaicml-streaming torch==2.14.1 torchvision==0.29.1
and give mosaicml/bin/python.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import io
import itertools
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from data.batch import Batch
from data.index import Index
from data.indexing import build_index
from data.loader import Loader
from data.mixture import IndexedSource
from data.store import EmbeddedStore
from data.stream import Storage, join
from tests.benchmarks import decode_others as others
from tests.benchmarks.decode_pipeline import BATCH, SIDE, rate

REDUCING_GAP = 1.5  # as conf/train.yaml has it
BLOCK_BYTES = 1 << 20  # as the demo has it: for one process that reads all of the shards
SHARDS = 8
PHOTOS = {"224x224": 2000, "1024x768": 600}
REQUIRED = {"224x224": 3.0, "1024x768": 4.0}
Timing = Callable[[], float]


def main() -> None:
    """Prints a table for each size of photographs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of tars with photographs")
    parser.add_argument("--sizes", nargs="+", default=list(PHOTOS), choices=list(PHOTOS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="that each loader is timed in each round")
    parser.add_argument("--only", nargs="+", help="rows whose names begin so")
    parser.add_argument("--mosaicml-python", help="of an environment with mosaicml-streaming")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.mosaicml_python is None:
        print(__doc__[__doc__.index("MosaicML streaming doesn't") :])
    with tempfile.TemporaryDirectory() as place, EmbeddedStore(Path(place) / "store") as store:
        os.environ.update(store.environment)
        for size in arguments.sizes:
            folder = Path(place) / size
            write(arguments.photos, folder, size)
            upload(folder, join(store.url, size))
            rows = timings(folder, join(store.url, size), arguments.seconds, arguments.mosaicml_python)
            if arguments.only:
                rows = {name: run for name, run in rows.items() if name.startswith(tuple(arguments.only))}
            found: dict[str, list[float]] = {name: [] for name in rows}
            for turn, (name, run) in itertools.product(range(arguments.rounds), rows.items()):
                found[name].append(run())
                print(f"round {turn + 1}: {name}: {found[name][-1]:,.0f}", flush=True)
            report(size, found)


def timings(folder: Path, url: str, seconds: float, mosaicml_python: str | None) -> dict[str, Timing]:
    """By name: what gives images a second of the photographs in a folder, and of those in the store."""
    epoch = PHOTOS[folder.name]
    found: dict[str, Timing] = {
        "PIL alone": partial(others.decoding, folder, others.by_pil, seconds),
        "torchvision alone": partial(others.decoding, folder, others.by_torchvision, seconds),
    }
    if folder.name != "224x224":  # which is smaller than the images
        found["PIL alone, at reduced size"] = partial(others.decoding, folder, others.by_pil_reduced, seconds)
    for workers in (0, 1, 2):
        found[f"ours, {workers} workers"] = partial(timed_ours, folder, workers, seconds)
    for name, make in (
        ("webdataset", others.of_webdataset),
        ("webdataset to float", others.of_webdataset_to_float),
        ("loose files", others.of_files),
    ):
        for workers in (0, 2):
            found[f"{name}, {workers} workers"] = partial(timed, make, folder, workers, seconds)
    if mosaicml_python is not None:
        for workers in (0, 2):
            run = partial(others.of_mosaicml, mosaicml_python, folder, workers, seconds)
            found[f"MosaicML streaming, {workers} workers"] = run
    for place, where in (("disk", str(folder)), ("store", url)):
        found[f"an epoch from {place}, 1 worker"] = partial(timed_epoch, where, epoch)
    return found


def ours(url: str, workers: int) -> Generator[Batch, None, None]:
    """Batches of the real loader, which has read nothing yet."""
    storage = Storage(block_bytes=BLOCK_BYTES)
    sources = [IndexedSource(Index.load(url, storage))]
    loader = Loader(
        sources,
        storage,
        seed=0,
        image_size=SIDE,
        inputs={},
        global_batch=BATCH,
        micro_batch=BATCH,
        workers=workers,
        reducing_gap=REDUCING_GAP,
    )
    return loader.batches()


def timed_ours(folder: Path, workers: int, seconds: float) -> float:
    """Images a second."""
    with closing(ours(str(folder), workers)) as batches:
        return rate(batches, seconds, workers)


def timed(make: Callable[[Path, int], Iterator[object]], folder: Path, workers: int, seconds: float) -> float:
    """The same of another's batches."""
    return rate(make(folder, workers), seconds, workers)


def timed_epoch(url: str, images: int) -> float:
    """Images a second of the first epoch, of which nothing is in memory yet, from the end of its first batch."""
    with closing(ours(url, 1)) as batches:
        next(batches)
        began = time.perf_counter()
        for _ in range(images // BATCH - 1):
            next(batches)
        return (images // BATCH - 1) * BATCH / (time.perf_counter() - began)


def report(size: str, rates: dict[str, list[float]]) -> None:
    """Prints what was measured, by name the images a second of each round, beside what is required."""
    print(f"\n{size} to {SIDE}x{SIDE}: images a second")
    for name, rounds in rates.items():
        print(f"  {name:<36}{statistics.median(rounds):>8,.0f}")
    ratios = [
        ("ours over webdataset, no worker", "ours, 0 workers", "webdataset, 0 workers", REQUIRED[size]),
        ("ours over webdataset, two workers", "ours, 2 workers", "webdataset, 2 workers", REQUIRED[size]),
        ("ours over webdataset to float", "ours, 0 workers", "webdataset to float, 0 workers", REQUIRED[size]),
        ("two workers over one", "ours, 2 workers", "ours, 1 workers", 1.8),
        ("store over disk", "an epoch from store, 1 worker", "an epoch from disk, 1 worker", 0.9),
    ]
    for what, above, below, required in ratios:
        if above in rates and below in rates:
            ratio = statistics.median(a / b for a, b in zip(rates[above], rates[below], strict=True))
            print(f"  {what:<36}{ratio:>8.2f}   at least {required}")
    print(flush=True)


def write(photos: Path, folder: Path, size: str) -> None:
    """The photographs in a size: tars with an index, and loose files in the folder `files`."""
    width, height = map(int, size.split("x"))
    (folder / "files").mkdir(parents=True)
    samples = photographs(photos)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number, members in enumerate(itertools.islice(samples, PHOTOS[size] // SHARDS)):
                for kind, content in {**members, "jpg": resized(members["jpg"], width, height)}.items():
                    info = tarfile.TarInfo(f"{shard:05d}{number:04d}.{kind}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                    (folder / "files" / info.name).write_bytes(content)
    build_index(str(folder), str(folder), Storage())


def photographs(folder: Path) -> Iterator[dict[str, bytes]]:
    """The members of each sample in a folder of tars."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for _, members in itertools.groupby(tar, lambda member: member.name.partition(".")[0]):
                yield {member.name.partition(".")[2]: contents(tar, member) for member in members}


def contents(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a file in a tar."""
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def resized(data: bytes, width: int, height: int) -> bytes:
    """As it is, where it has that size; else covered by it, as JPEG of quality 90."""
    with Image.open(io.BytesIO(data)) as image:
        if image.size == (width, height):
            return data
        buffer = io.BytesIO()
        image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()


def upload(folder: Path, url: str) -> None:
    """The tars, to the store, with an index."""
    storage = Storage()
    for path in folder.glob("*.tar"):
        storage.write(join(url, path.name), path.read_bytes())
    build_index(url, url, storage)


if __name__ == "__main__":
    main()
