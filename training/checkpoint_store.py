"""Checkpoints in a store, in the folders and files of a disk. A leaf: knows no engine and no rank."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from data.errors import DataError, NotFound, StoreUnavailable
from data.stream import join
from data.transfer import PART_BYTES, Transfers
from training.checkpoint_files import DAMAGED, MANIFEST, CheckpointError, Manifest, byte_bar, parse_manifest, problems

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
RUN_FILES = (CONFIG, "data.json", "metrics.jsonl", "wandb_run_id")
"""What of a run goes with its checkpoints, so that another machine can go on with it, or draw with its model."""


def run_and_checkpoint(url: str) -> tuple[str, str | None]:
    """The URL of a run, and the name of its checkpoint where the URL is that of one."""
    top, _, name = url.rstrip("/").rpartition("/")
    run, _, folder = top.rpartition("/")
    return (run, name) if folder == CHECKPOINTS and name.startswith("step-") else (url.rstrip("/"), None)


class CheckpointStore:
    """The checkpoints of the run whose folder in a store is `url`: url/checkpoints/step-00000400/manifest.json.

    As on a disk the manifest comes last, and goes first: without it there is no checkpoint. They are called by their
    names, "step-00000400". Every method raises StoreUnavailable when the store fails for longer than it is asked again.
    """

    def __init__(self, url: str, storage: Transfers) -> None:
        self.url = url
        self.storage = storage

    def place(self, name: str, file: str | None = None) -> str:
        """URL of a checkpoint, or of one of its files."""
        folder = join(join(self.url, CHECKPOINTS), name)
        return folder if file is None else join(folder, file)

    def contents(self) -> dict[str, set[str]]:
        """Names of files by folder: of checkpoints, and of what never became one."""
        top = join(self.url, CHECKPOINTS)
        found: dict[str, set[str]] = {}
        for url in self.storage.list(top, below=True):
            name, _, file = url.removeprefix(join(top, "")).partition("/")
            if name.startswith("step-"):
                found.setdefault(name, set()).add(file)
        return found

    def complete(self) -> list[str]:
        """The checkpoints that have a manifest, newest first."""
        return sorted((name for name, files in self.contents().items() if MANIFEST in files), reverse=True)

    def manifest_text(self, name: str) -> str:
        """A checkpoint's manifest as it is written. Raises CheckpointError when there is none."""
        try:
            return self.storage.read(self.place(name, MANIFEST)).decode(errors="replace")
        except NotFound:
            raise CheckpointError(f"{self.place(name)} is no complete checkpoint: it has no {MANIFEST}") from None

    def manifest(self, name: str) -> Manifest:
        """The same, parsed. Raises CheckpointError when it isn't there or can't be read."""
        return parse_manifest(self.manifest_text(name), self.place(name, MANIFEST))

    def newest_readable(self) -> tuple[str, Manifest] | None:
        """The newest checkpoint whose manifest holds, and that, without reading its tensors."""
        for name in self.complete():
            with suppress(CheckpointError):
                return name, self.manifest(name)
        return None

    def put_files(self, checkpoint: Path, files: Iterable[str]) -> None:
        """Uploads files of a checkpoint of this machine. Raises OSError when one can't be read."""
        for file in files:
            self.storage.upload(checkpoint / file, self.place(checkpoint.name, file))

    def put_manifest(self, checkpoint: Path) -> None:
        """Makes it a checkpoint, when all its files are there; what of its run goes with it comes before."""
        self.storage.remove(self.place(checkpoint.name, DAMAGED))  # of one that was set aside there
        for file in RUN_FILES:
            if (path := checkpoint.parents[1] / file).exists():
                self.storage.upload(path, join(self.url, file))
        self.put_files(checkpoint, [MANIFEST])

    def fetch_files(self, name: str, manifest: Manifest, target: Path, part: int = 0, parts: int = 1) -> list[str]:
        """Brings a checkpoint's files into the folder `target`; returns what is wrong with those that can't be had.

        Of `parts` callers that share the work, each gives a `part` of its own, from 0 on, and brings some of the files.
        Their checksums are yet to be looked at.
        """
        target.mkdir(parents=True, exist_ok=True)
        found, mine = [], dict(list(manifest.files.items())[part::parts])
        with byte_bar(f"fetching {name}", sum(entry.size for entry in mine.values()), part == 0) as bar:
            for file, entry in mine.items():
                try:
                    self.storage.download(self.place(name, file), target / file, entry.size, bar.update)
                except StoreUnavailable:
                    raise
                except DataError as error:
                    found.append(str(error))
        return found

    def run_file(self, name: str) -> bytes | None:
        """A file that goes with the checkpoints; None where there is none."""
        try:
            return self.storage.read(join(self.url, name))
        except NotFound:
            return None

    def fetch(self, name: str, target: Path) -> list[str]:
        """Makes one a checkpoint of this machine, in the folder `target`; returns what is wrong with it."""
        text = self.manifest_text(name)
        try:
            found = self.fetch_files(name, parse_manifest(text, self.place(name, MANIFEST)), target)
        except CheckpointError as error:
            return [str(error)]
        if not found:
            (target / MANIFEST).write_text(text)
            found = problems(target)
        return found

    def fetch_run_files(self, folder: Path, files: Iterable[str] = RUN_FILES) -> None:
        """Brings files that go with checkpoints into a run's folder, in place of older ones."""
        for file in files:
            url, part = join(self.url, file), folder / f"{file}.part"
            with suppress(NotFound):
                self.storage.download(url, part, self.storage.size(url))
                part.replace(folder / file)

    def problems(self, name: str) -> list[str]:
        """Lists what is wrong with a checkpoint, as `checkpoint_files.problems` does, by reading all of it."""
        try:
            manifest = self.manifest(name)
        except CheckpointError as error:
            return [str(error)]
        found = []
        with byte_bar(f"checking {name}", sum(entry.size for entry in manifest.files.values())) as bar:
            for file, entry in manifest.files.items():
                url = self.place(name, file)
                try:
                    if (size := self.storage.size(url)) != entry.size:
                        found.append(f"{url} has {size:,} bytes, its manifest says {entry.size:,}")
                    elif self._sha256(url, bar.update) != entry.sha256:
                        found.append(f"{url} doesn't have the sha256 of its manifest: its bytes were altered")
                except NotFound:
                    found.append(f"{url} is missing")
        return found

    def set_aside(self, name: str) -> None:
        """Keeps a damaged checkpoint from being taken for one; its files stay until a newer one is complete."""
        self.storage.write(self.place(name, DAMAGED), self.storage.read(self.place(name, MANIFEST)))
        self.storage.remove(self.place(name, MANIFEST))

    def remove(self, name: str) -> None:
        """Removes a checkpoint, or what is left of one."""
        self.storage.remove(self.place(name, MANIFEST))
        self.storage.remove_below(self.place(name))

    def remove_unfinished(self) -> None:
        """Removes what uploads left that were killed; to be called while nothing of the run is uploaded."""
        self.storage.remove_unfinished(join(self.url, CHECKPOINTS))

    def _sha256(self, url: str, seen: Callable[[int], object]) -> str:
        digest = hashlib.sha256()
        with self.storage.open(url) as (file, _):
            while data := file.read(PART_BYTES):
                digest.update(data)
                seen(len(data))
        return digest.hexdigest()
