"""Save and restore: every rank writes the fragments it owns, one manifest written last makes the checkpoint exist."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from training.checkpoint_files import (
    KINDS,
    MANIFEST,
    CheckpointError,
    EngineEntry,
    FileEntry,
    Fragment,
    Manifest,
    ParameterEntry,
    Reader,
    complete_checkpoints,
    folder_name,
    newest_complete,
    sha256_of,
    tensor_key,
)
from training.distributed import Distributed
from training.engine import Engine


class Checkpoints:
    """The checkpoints of one run, below `folder`; the newest `keep` complete ones stay."""

    def __init__(self, folder: Path, ranks: Distributed, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"checkpoint.keep is {keep}; it must be at least 1")
        self.folder = folder
        self.ranks = ranks
        self.keep = keep

    def save(
        self,
        engines: dict[str, Engine],
        step: int,
        images_seen: int,
        extra: dict[str, Any],
        before_it_counts: Callable[[float], None] = lambda stall_seconds: None,
    ) -> None:
        """Writes the state after `step`. A collective.

        before_it_counts: called when all files are written and before the manifest makes them a checkpoint, with the
        seconds that training has stood still. What must be on disk whenever the checkpoint is can be written there.
        A failure on any rank (a full disk, say) raises CheckpointError on all of them, and leaves no manifest.
        """
        started = time.monotonic()
        target = self.folder / folder_name(step)
        if self.ranks.is_main and target.exists():
            shutil.rmtree(target)  # a torn attempt at this step, or one whose checksums failed
        self.ranks.barrier()
        error: str | None = None
        share: tuple[str, FileEntry, dict[str, list[tuple[str, int, int]]]] | None = None
        try:
            target.mkdir(parents=True, exist_ok=True)
            share = self._write_share(target, engines)
        except Exception as failure:
            error = f"rank {self.ranks.rank}: {type(failure).__name__}: {failure}"
        shares = self.ranks.gather_objects((error, share))
        errors = [error for error, _ in shares if error]
        if errors:
            raise CheckpointError(f"checkpoint {target} could not be written: {'; '.join(errors)}")
        before_it_counts(time.monotonic() - started)
        if self.ranks.is_main:
            manifest = _assemble([share for _, share in shares], engines, step, images_seen, extra)
            _write_atomically(target / MANIFEST, manifest.to_json())
            self._remove_old()
        self.ranks.barrier()

    def restore_newest(self, engines: dict[str, Engine]) -> Manifest | None:
        """Loads the newest whole checkpoint into the engines; None when there is none. A collective.

        The number of ranks and the ZeRO stage may differ from those that saved it.
        """
        found = self.ranks.broadcast_object(newest_complete(self.folder) if self.ranks.is_main else None)
        if found is None:
            return None
        reader = Reader(found)
        for name, engine in engines.items():
            entry = reader.engine(name)
            for fragment in engine.fragments():
                for kind, tensor in fragment.tensors.items():
                    with torch.no_grad():
                        values = reader.interval(name, kind, fragment.parameter, fragment.start, fragment.stop)
                        tensor.copy_(values)
            engine.set_updates(entry.updates)
            engine.publish_weights()
        self.ranks.barrier()
        return reader.manifest

    def _write_share(
        self, target: Path, engines: dict[str, Engine]
    ) -> tuple[str, FileEntry, dict[str, list[tuple[str, int, int]]]]:
        file = f"rank-{self.ranks.rank:05d}-of-{self.ranks.world:05d}.safetensors"
        tensors: dict[str, torch.Tensor] = {}
        held: dict[str, list[tuple[str, int, int]]] = {name: [] for name in engines}
        for name, engine in engines.items():
            for fragment in engine.fragments():
                if not fragment.written_here:
                    continue
                held[name].append((fragment.parameter, fragment.start, fragment.stop))
                for kind in KINDS:
                    copy = fragment.tensors[kind].detach().to("cpu", copy=True)
                    tensors[tensor_key(name, kind, fragment.parameter)] = copy
        path = target / file
        save_file(tensors, path)
        _flush_to_disk(path)
        return file, FileEntry(path.stat().st_size, sha256_of(path)), held

    def _remove_old(self) -> None:
        complete = list(complete_checkpoints(self.folder))
        for old in complete[self.keep :]:
            # The manifest goes first, so that a torn removal is never taken for a checkpoint.
            (old / MANIFEST).unlink()
            shutil.rmtree(old)


def _assemble(
    shares: list[Any], engines: dict[str, Engine], step: int, images_seen: int, extra: dict[str, Any]
) -> Manifest:
    entries = {}
    for name, engine in engines.items():
        parameters = {p: ParameterEntry(shape, []) for p, shape in engine.shapes.items()}
        for file, _, held in shares:
            for parameter, start, stop in held[name]:
                parameters[parameter].fragments.append(Fragment(file, start, stop))
        entries[name] = EngineEntry(engine.updates, parameters)
    files = {file: entry for file, entry, _ in shares}
    return Manifest(step, images_seen, len(shares), entries, files, extra)


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    _flush_to_disk(partial)
    partial.rename(path)
    _flush_to_disk(path.parent)


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
