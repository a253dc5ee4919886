"""The files of a sharded checkpoint: naming, verifying and reading them. A leaf: knows no engine and no rank.

A checkpoint is a folder `step-00000400/` with one safetensors file a rank and a `manifest.json`. The manifest is
written last, by an atomic rename: a folder without it is no checkpoint. It names, for each engine and each
parameter, which flat interval of the parameter lies in which file, so that any number of ranks at any ZeRO stage
can read it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

MANIFEST = "manifest.json"
DAMAGED = "manifest.damaged.json"
"""Name that the manifest of a checkpoint gets whose bytes don't fit it: it is no checkpoint any more."""
FORMAT = 3
OLDER_FORMATS = (1, 2)
"""What is read, but not written any more. 1: the manifest had no checksum of its own. 2: it didn't name the kinds."""
BASE_KINDS = ("param", "exp_avg", "exp_avg_sq")
"""Tensors kept of each parameter: fp32 weights and Adam's two moments, or what of them another optimizer has. Averages
of the weights come after them."""
AVERAGE = "ema"
"""The average that every run keeps, and that is looked at. A run may keep others."""
OPEN_BYTES = 2**30
"""So much is read of a checkpoint's files before they are opened anew."""


class CheckpointError(Exception):
    """A checkpoint is missing, torn, altered, or belongs to another model; the message says which and what to do."""


class CheckpointNotWritten(CheckpointError):
    """A checkpoint can't be written, as to a full disk; those before it stay."""


@dataclass(frozen=True)
class Fragment:
    """The interval [start, stop) of a flattened parameter, in file `file` under each kind of its manifest."""

    file: str
    start: int
    stop: int


@dataclass(frozen=True)
class ParameterEntry:
    """Where a parameter of the given shape lies; fragments may overlap nowhere and cover everything."""

    shape: list[int]
    fragments: list[Fragment]


@dataclass(frozen=True)
class EngineEntry:
    """One engine's parameters by name, and the number of optimizer updates it has made."""

    updates: int
    parameters: dict[str, ParameterEntry]


@dataclass(frozen=True)
class FileEntry:
    """Length in bytes and sha256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All that is known of a checkpoint.

    kinds: what is kept of each parameter, out of BASE_KINDS, and averages of the weights. extra: the task's own numbers
    (such as the latent scale).
    """

    step: int
    images_seen: int
    world: int
    engines: dict[str, EngineEntry]
    files: dict[str, FileEntry]
    extra: dict[str, Any] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=lambda: [*BASE_KINDS, AVERAGE])
    format: int = FORMAT

    def to_json(self) -> str:
        """Returns the manifest as text, keys in a fixed order, with a checksum of itself."""
        content = asdict(self)
        return json.dumps({"sha256": _sha256_of_content(content), **content}, indent=1)

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Parses `to_json`'s text. Raises ValueError, KeyError or TypeError for anything else, be it by one byte."""
        raw = json.loads(text)
        if raw["format"] not in (FORMAT, *OLDER_FORMATS):
            raise ValueError(f"checkpoint format {raw['format']}, this version reads {FORMAT}")
        if raw["format"] > 1 and raw.pop("sha256") != _sha256_of_content(raw):
            raise ValueError("it doesn't have its own sha256: its bytes were altered")
        engines = {
            name: EngineEntry(
                engine["updates"],
                {
                    parameter: ParameterEntry(entry["shape"], [Fragment(**f) for f in entry["fragments"]])
                    for parameter, entry in engine["parameters"].items()
                },
            )
            for name, engine in raw["engines"].items()
        }
        files = {name: FileEntry(**entry) for name, entry in raw["files"].items()}
        kinds = raw["kinds"] if raw["format"] > 2 else [*BASE_KINDS, AVERAGE]
        return Manifest(raw["step"], raw["images_seen"], raw["world"], engines, files, raw["extra"], kinds)


def _sha256_of_content(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def folder_name(step: int) -> str:
    """Name of the checkpoint's folder after `step` optimizer steps."""
    return f"step-{step:08d}"


def step_of(checkpoint: Path | str) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(Path(checkpoint).name.removeprefix("step-"))


def tensor_key(engine: str, kind: str, parameter: str) -> str:
    """Name of a fragment's tensor inside its file."""
    return f"{engine}/{kind}/{parameter}"


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def load_manifest(checkpoint: Path) -> Manifest:
    """Reads a checkpoint's manifest. Raises CheckpointError when it isn't there or can't be read."""
    path = checkpoint / MANIFEST
    try:
        return parse_manifest(path.read_text(errors="replace"), path)
    except FileNotFoundError:
        raise CheckpointError(f"{checkpoint} is no complete checkpoint: it has no {MANIFEST}") from None


def parse_manifest(text: str, place: Path | str) -> Manifest:
    """The manifest whose text lies at `place`. Raises CheckpointError when it isn't one, be it by one byte."""
    try:
        return Manifest.from_json(text)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{place} can't be read ({error}); remove its checkpoint or restore it") from None


def problems(checkpoint: Path, part: int = 0, parts: int = 1) -> list[str]:
    """Lists what is wrong with a checkpoint, file by file; an empty list means that it is whole.

    Of `parts` callers that share the work, each gives a `part` of its own, from 0 on, and checks some of the files.
    """
    try:
        manifest = load_manifest(checkpoint)
    except CheckpointError as error:
        return [str(error)] if part == 0 else []
    found = []
    for name, entry in list(manifest.files.items())[part::parts]:
        path = checkpoint / name
        if not path.exists():
            found.append(f"{path} is missing")
        elif path.stat().st_size != entry.size:
            found.append(f"{path} has {path.stat().st_size:,} bytes, its manifest says {entry.size:,}")
        elif sha256_of(path) != entry.sha256:
            found.append(f"{path} doesn't have the sha256 of its manifest: its bytes were altered")
    return found


def complete_checkpoints(folder: Path) -> Iterator[Path]:
    """Yields the folders that have a manifest, newest step first, without reading their tensors."""
    yield from sorted((path.parent for path in folder.glob(f"step-*/{MANIFEST}")), reverse=True)


def newest_readable(folder: Path) -> tuple[Path, Manifest] | None:
    """Returns the newest checkpoint below `folder` whose manifest holds, and that, without reading its tensors."""
    for checkpoint in complete_checkpoints(folder):
        with contextlib.suppress(CheckpointError):
            return checkpoint, load_manifest(checkpoint)
    return None


def newest_complete(folder: Path) -> Path | None:
    """Returns the newest checkpoint below `folder` whose manifest and checksums hold, or None."""
    return next((path for path in complete_checkpoints(folder) if not problems(path)), None)


class Reader:
    """Reads intervals of parameters from a checkpoint, opening each of its files once."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.manifest = load_manifest(checkpoint)
        self._files: dict[str, Any] = {}
        self._read_bytes = 0

    def engine(self, name: str) -> EngineEntry:
        """Returns an engine's entry. Raises CheckpointError naming the engines that are there."""
        if name not in self.manifest.engines:
            known = ", ".join(self.manifest.engines)
            raise CheckpointError(f"{self.checkpoint} has no engine '{name}'; it has: {known}")
        return self.manifest.engines[name]

    def interval(self, engine: str, kind: str, parameter: str, start: int, stop: int) -> torch.Tensor:
        """Returns elements [start, stop) of a flattened parameter, float32 [stop - start]."""
        values = torch.empty(stop - start, dtype=torch.float32)
        self.fill(engine, kind, parameter, start, values)
        return values

    def fill(self, engine: str, kind: str, parameter: str, start: int, values: torch.Tensor) -> None:
        """Reads elements [start, start + N) of a flattened parameter into `values`, float32 [N]."""
        entry = self.engine(engine).parameters[parameter]
        stop = start + len(values)
        filled = 0
        for fragment in entry.fragments:
            first, last = max(start, fragment.start), min(stop, fragment.stop)
            if first >= last:
                continue
            stored = self._open(fragment.file).get_slice(tensor_key(engine, kind, parameter))
            values[first - start : last - start] = stored[first - fragment.start : last - fragment.start]
            filled += last - first
        self._read_bytes += values.nbytes
        if self._read_bytes > OPEN_BYTES:  # what was read of a mapped file stays in memory until that is closed
            self._files.clear()
            self._read_bytes = 0
        if filled != stop - start:
            raise CheckpointError(f"{self.checkpoint}: {parameter} [{start}:{stop}) has only {filled} elements")

    def tensor(self, engine: str, kind: str, parameter: str) -> torch.Tensor:
        """Returns a whole parameter in its shape, float32."""
        shape = self.engine(engine).parameters[parameter].shape
        return self.interval(engine, kind, parameter, 0, math.prod(shape)).reshape(shape)

    def _open(self, name: str) -> Any:
        if name not in self._files:
            self._files[name] = safe_open(self.checkpoint / name, framework="pt")
        return self._files[name]


def read_weights(checkpoint: Path, engine: str, kind: str = AVERAGE) -> dict[str, torch.Tensor]:
    """Returns an engine's whole state dict, float32 on the CPU: 'param', or an average of them by its name."""
    reader = Reader(checkpoint)
    if kind not in reader.manifest.kinds:
        raise CheckpointError(
            f"{checkpoint} has no '{kind}' of its weights; it has: {', '.join(reader.manifest.kinds)}"
        )
    return {name: reader.tensor(engine, kind, name) for name in reader.engine(engine).parameters}


def check_same_parameters(manifest: Manifest, shapes: dict[str, dict[str, list[int]]], checkpoint: Path | str) -> None:
    """Raises CheckpointError when the checkpoint's parameters aren't those of `shapes` (engine → name → shape)."""
    remedy = "continue with the configuration it was made with, or choose another run.name"
    for engine, wanted in shapes.items():
        if engine not in manifest.engines:
            raise CheckpointError(f"{checkpoint} is of another task: it has no '{engine}' weights; {remedy}")
        found = {name: entry.shape for name, entry in manifest.engines[engine].parameters.items()}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise CheckpointError(
                    f"{checkpoint} is of another model: parameter {name} is {found.get(name, 'absent')} there, "
                    f"{wanted.get(name, 'absent')} in this configuration; {remedy}"
                )


def check_same_batch(manifest: Manifest, global_batch: int, checkpoint: Path | str) -> None:
    """Raises CheckpointError when the checkpoint's steps were of other batches: what it has seen follows from them."""
    if manifest.images_seen != manifest.step * global_batch:
        raise CheckpointError(
            f"{checkpoint} has seen {manifest.images_seen} images in {manifest.step} steps, and with "
            f"batch.global_size={global_batch} it would repeat or skip samples; continue with "
            f"batch.global_size={manifest.images_seen // manifest.step}, or choose another run.name"
        )


def check_same_optimizer(manifest: Manifest, kinds: Sequence[str], checkpoint: Path) -> None:
    """Raises CheckpointError when the checkpoint doesn't keep the moments that are among `kinds`, or others too."""
    found, wanted = ([kind for kind in BASE_KINDS if kind in kept] for kept in (manifest.kinds, kinds))
    if found != wanted:
        raise CheckpointError(
            f"{checkpoint} is of another optimizer: it keeps {', '.join(found)} of each parameter, and this one "
            f"{', '.join(wanted)}; continue with the optimizer it was made with, or choose another run.name"
        )
