"""MosaicML streaming on the images of `tests.benchmarks.decode`, in an environment of its own, which lacks the project.

    PYTHON -m tests.benchmarks.decode_mosaicml FOLDER_OF_TARS FOLDER_TO_WRITE WORKERS SECONDS

Prints images a second. The first run writes the images in MosaicML's format.
"""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torch.utils.data import DataLoader

from tests.benchmarks.decode_pipeline import BATCH, picture, rate, transform


class Pictures(StreamingDataset):
    """Images and captions."""

    def __init__(self, folder: Path) -> None:
        super().__init__(local=str(folder), shuffle=True, batch_size=BATCH, shuffle_seed=0)
        self.transform = transform()

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return self.transform(picture(sample["jpg"])), sample["txt"]


def write(tars: Path, folder: Path) -> None:
    """The tars' pictures and captions."""
    with MDSWriter(out=str(folder), columns={"jpg": "bytes", "txt": "str"}) as writer:
        for path in sorted(tars.glob("*.tar")):
            with tarfile.open(path) as tar:
                sample: dict[str, Any] = {}
                for member in tar:
                    kind = member.name.rpartition(".")[2]
                    content = tar.extractfile(member)
                    assert content is not None
                    if kind in ("jpg", "txt"):
                        sample[kind] = content.read() if kind == "jpg" else content.read().decode()
                    if len(sample) == 2:
                        writer.write(sample)
                        sample = {}


def endless(folder: Path, workers: int) -> Iterator[Any]:
    """Batches, epoch after epoch."""
    loader = DataLoader(
        Pictures(folder), batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0, drop_last=True
    )
    while True:
        yield from loader


def main() -> None:
    """Prints images a second."""
    tars, folder, workers, seconds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    clean_stale_shared_memory()
    if not folder.exists():
        write(tars, folder)
    print(rate(endless(folder, workers), seconds, workers))


if __name__ == "__main__":
    main()
