"""Save and restore. Every rank writes the fragments it owns, behind training; one manifest written last makes the
checkpoint exist."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from training.checkpoint_files import (
    AVERAGE,
    DAMAGED,
    MANIFEST,
    CheckpointError,
    CheckpointNotWritten,
    EngineEntry,
    FileEntry,
    Fragment,
    Manifest,
    ParameterEntry,
    Reader,
    complete_checkpoints,
    folder_name,
    problems,
)
from training.checkpoint_share import Held, Share
from training.distributed import Distributed
from training.engine import Engine
from training.retention import Retention

log = logging.getLogger(__name__)


@dataclass
class _Saving:
    """A save that is under way. First every rank writes its share; then the main rank makes them a checkpoint.

    work: what this rank has to do of it, in a thread of its own. complete: makes the checkpoint of all ranks' shares
    and returns metrics of it; None once that has begun.
    """

    target: Path
    work: Future[Any]
    complete: Callable[[list[_Written]], dict[str, float]] | None


_Written = tuple[str, FileEntry, Held]
"""A file that a rank wrote: its name, size and checksum, and what it holds."""


class Checkpoints:
    """The checkpoints of one run, below `folder`. At most one is being written at a time.

    All ranks call the same methods in the same order. What goes wrong behind training on any of them is raised as
    CheckpointError on all of them, by the next `check`, `save` or `finish`; it leaves no manifest.
    """

    def __init__(self, folder: Path, ranks: Distributed, retention: Retention | None = None) -> None:
        self.folder = folder
        self.ranks = ranks
        self.retention = retention or Retention()
        self.newest: dict[str, float] = {}
        """Metrics of the newest checkpoint; see training.metrics."""
        self._saving: _Saving | None = None
        self._memory: torch.Tensor | None = None

    def save(
        self,
        engines: dict[str, Engine],
        step: int,
        images_seen: int,
        extra: dict[str, Any],
        before_it_counts: Callable[[], None] = lambda: None,
    ) -> float:
        """Copies the state after `step` to host memory, and begins to write it behind training. A collective.

        Returns the seconds that training stood still: to copy, and to wait for the save before if that isn't done.
        before_it_counts: called on the main rank, in another thread, when all files are written and before the
        manifest makes them a checkpoint. What must be on disk whenever the checkpoint is can be brought there.
        """
        started = time.monotonic()
        self.finish()
        target = self.folder / folder_name(step)
        share = self._together(target, lambda: self._prepare(target, engines))
        updates = {name: engine.updates for name, engine in engines.items()}
        shapes = {name: engine.shapes for name, engine in engines.items()}
        kinds = list(share.kinds)

        def complete(written: list[_Written]) -> dict[str, float]:
            before_it_counts()
            manifest = _assemble(written, shapes, updates, step, images_seen, extra, kinds)
            _write_atomically(target / MANIFEST, manifest.to_json())
            self.retention.apply(target)
            return {
                "checkpoint/last_complete_step": step,
                "checkpoint/bytes": sum(entry.size for _, entry, _ in written),
                "checkpoint/seconds": time.monotonic() - started,
            }

        file = f"rank-{self.ranks.rank:05d}-of-{self.ranks.world:05d}.safetensors"
        self._saving = _Saving(target, _behind(partial(_write, share, target, file)), complete)
        if share.memory is None:  # what training goes on to change is being written
            self.finish()
        return time.monotonic() - started

    def check(self) -> None:
        """Brings a save forward whose work behind training is done. A collective while there is one, else nothing."""
        if self._saving is not None and not self.ranks.any(not self._saving.work.done()):
            self._advance(self._saving)

    def finish(self) -> None:
        """Returns when the last save is a checkpoint on the disk. A collective."""
        while self._saving is not None:
            wait([self._saving.work])
            self._advance(self._saving)

    def restore_newest(self, engines: dict[str, Engine]) -> Manifest | None:
        """Loads the newest whole checkpoint into the engines; None when there is none. A collective.

        The number of ranks and the ZeRO stage may differ from those that saved it. Damaged ones are named in the log,
        and set aside. Raises CheckpointError when all of them are damaged.
        """
        candidates = self.ranks.broadcast_object(list(complete_checkpoints(self.folder)) if self.ranks.is_main else [])
        damaged: dict[Path, list[str]] = {}
        for checkpoint in candidates:
            # Each rank reads some of the files: to check all of them would take one rank longer than to load them.
            parts = self.ranks.gather_objects(problems(checkpoint, self.ranks.rank, self.ranks.world))
            if not (found := [problem for part in parts for problem in part]):
                break
            damaged[checkpoint] = found
        else:
            if damaged:
                listed = "\n  ".join(problem for found in damaged.values() for problem in found)
                raise CheckpointError(
                    f"all checkpoints in {self.folder} are damaged; bring one back from a copy, or remove the folder "
                    f"to begin anew:\n  {listed}"
                )
            return None
        if self.ranks.is_main:
            for path, found in damaged.items():
                log.warning("%s is damaged, going back to %s: %s", path, checkpoint.name, "; ".join(found))
                if (path / MANIFEST).exists():
                    (path / MANIFEST).rename(path / DAMAGED)
        reader = Reader(checkpoint)
        if self.ranks.is_main:
            _tell_of_averages(checkpoint, reader.manifest.kinds, next(iter(engines.values())).kinds)
        for name, engine in engines.items():
            _load(engine, reader, name)
        self.ranks.barrier()
        self.newest = {"checkpoint/last_complete_step": reader.manifest.step}
        return reader.manifest

    def _prepare(self, target: Path, engines: dict[str, Engine]) -> Share:
        if self.ranks.is_main and target.exists():
            (target / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(target)  # a torn attempt at this step, or one that was damaged
        share = Share(engines, self._memory)
        self._memory = share.memory
        return share

    def _advance(self, saving: _Saving) -> None:
        """All ranks come here when their work is done."""
        self._saving = None
        written = self._together(saving.target, saving.work.result, gathered=True)
        if saving.complete is None:
            self.newest = written[0]
            return
        done: Future[Any] = Future()
        done.set_result({})
        work = _behind(partial(saving.complete, written)) if self.ranks.is_main else done
        self._saving = _Saving(saving.target, work, None)

    def _together(self, target: Path, work: Callable[[], Any], gathered: bool = False) -> Any:
        """What `work` returns, or with `gathered` what it returns on each rank. A failure on any is one of all."""
        error = result = None
        try:
            result = work()
        except Exception as failure:
            error = f"rank {self.ranks.rank}: {type(failure).__name__}: {failure}"
        everyone = self.ranks.gather_objects((error, result if gathered else None))
        if errors := [error for error, _ in everyone if error]:
            if self.ranks.is_main and not (target / MANIFEST).exists():
                shutil.rmtree(target, ignore_errors=True)  # a full disk needs room for the record of what happened
            raise CheckpointNotWritten(
                f"checkpoint {target} could not be written: {'; '.join(errors)}. Those before it stay; see that "
                f"{self.folder} can be written to and has room, then run again"
            )
        return [result for _, result in everyone] if gathered else result


def _behind(work: Callable[[], Any]) -> Future[Any]:
    """Does it in a thread that ends with the process, finished or not: a torn save is never taken for a checkpoint."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True, name="checkpoint").start()
    return future


def _write(share: Share, target: Path, file: str) -> _Written:
    target.mkdir(parents=True, exist_ok=True)
    entry = share.write(target / file)
    _flush_to_disk(target)
    return file, entry, share.held


def _tell_of_averages(checkpoint: Path, kept: Sequence[str], wanted: Sequence[str]) -> None:
    if new := [kind for kind in wanted if kind not in kept]:
        log.warning("%s doesn't have the average %s: it begins as '%s'", checkpoint.name, ", ".join(new), AVERAGE)
    if gone := [kind for kind in kept if kind not in wanted]:
        log.warning("%s has the average %s, which isn't kept any more", checkpoint.name, ", ".join(gone))


def _load(engine: Engine, reader: Reader, name: str) -> None:
    entry = reader.engine(name)
    with torch.no_grad():
        for fragment in engine.fragments():
            for kind, tensor in fragment.tensors.items():
                kept = kind if kind in reader.manifest.kinds else AVERAGE
                reader.fill(name, kept, fragment.parameter, fragment.start, tensor)
    engine.set_updates(entry.updates)
    engine.publish_weights()


def _assemble(
    written: list[_Written],
    shapes: dict[str, dict[str, list[int]]],
    updates: dict[str, int],
    step: int,
    images_seen: int,
    extra: dict[str, Any],
    kinds: list[str],
) -> Manifest:
    entries = {}
    for name, of_engine in shapes.items():
        parameters = {parameter: ParameterEntry(shape, []) for parameter, shape in of_engine.items()}
        for file, _, held in written:
            for parameter, start, stop in held[name]:
                parameters[parameter].fragments.append(Fragment(file, start, stop))
        entries[name] = EngineEntry(updates[name], parameters)
    files = {file: entry for file, entry, _ in written}
    return Manifest(step, images_seen, len(written), entries, files, extra, kinds)


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    _flush_to_disk(partial)
    _flush_to_disk(path.parent.parent)
    partial.rename(path)
    _flush_to_disk(path.parent)


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
