"""The loaders and decoders that `tests.benchmarks.decode` times beside ours. Each gives batches without end."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_jpeg

from tests.benchmarks.decode_pipeline import BATCH, SIDE, picture, rate, transform, transform_to_float

PROJECT = Path(__file__).resolve().parents[2]


def of_webdataset(folder: Path, workers: int, make: Callable[[], transforms.Compose] = transform) -> Iterator[Any]:
    """Its pipeline as its documentation has it: shuffle, decode by PIL, transform by torchvision, batch."""
    import webdataset as wds

    shards = sorted(str(path) for path in folder.glob("*.tar"))
    dataset = (
        wds.WebDataset(shards, resampled=True, shardshuffle=False, nodesplitter=None)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "txt")
        .map_tuple(make(), lambda caption: caption)
        .batched(BATCH)
    )
    return iter(wds.WebLoader(dataset, batch_size=None, num_workers=workers))


def of_webdataset_to_float(folder: Path, workers: int) -> Iterator[Any]:
    """The same with the transform of many training scripts."""
    return of_webdataset(folder, workers, transform_to_float)


class Files(Dataset[Any]):
    """Loose files: KEY.jpg and KEY.txt."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.jpg"))
        self.transform = transform()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Any:
        path = self.paths[number]
        return self.transform(picture(path.read_bytes())), path.with_suffix(".txt").read_text()


def of_files(folder: Path, workers: int) -> Iterator[Any]:
    """torch's DataLoader over loose files."""
    loader = DataLoader(
        Files(folder / "files"),
        BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def of_mosaicml(python: str, folder: Path, workers: int, seconds: float) -> float:
    """Images a second of MosaicML streaming, by a Python that has it."""
    command = [python, "-m", "tests.benchmarks.decode_mosaicml", str(folder), str(folder / "mds"), str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [*command, str(seconds)], cwd=PROJECT, env=environment, check=True, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1])


def by_pil(data: bytes) -> object:
    """Pixels of the whole picture."""
    return np.asarray(picture(data))


def by_torchvision(data: bytes) -> object:
    """The same."""
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)


def by_pil_reduced(data: bytes) -> object:
    """At 1/2 where that leaves the wanted size."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (SIDE, SIDE))
        return np.asarray(image)


def decoding(folder: Path, decode: Callable[[bytes], object], seconds: float) -> float:
    """Pictures a second of a decoder alone, whose bytes lie in memory."""
    data = []
    with tarfile.open(min(folder.glob("*.tar"))) as tar:
        for member in tar:
            if member.name.endswith(".jpg") and len(data) < BATCH:
                data.append(tar.extractfile(member).read())  # type: ignore[union-attr]
    return rate(([decode(one) for one in data] for _ in itertools.count()), seconds)
