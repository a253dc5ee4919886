"""Save and restore. Every rank writes the fragments it owns, behind training; one manifest written last makes the
checkpoint exist. Then it may go to a store, and from there come back to a machine that lacks it."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from training.behind import Behind, RanksFailed, begin, together
from training.checkpoint_files import (
    AVERAGE,
    DAMAGED,
    MANIFEST,
    CheckpointError,
    CheckpointNotWritten,
    Manifest,
    Reader,
    byte_bar,
    check_same_optimizer,
    complete_checkpoints,
    folder_name,
    problems,
)
from training.checkpoint_share import Share, Written, assemble, elements_copied, host_memory
from training.checkpoint_upload import Uploads
from training.distributed import Distributed
from training.engine import Engine
from training.retention import Retention

log = logging.getLogger(__name__)
T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one run, below `folder`. At most one is being written at a time.

    All ranks call the same methods in the same order. What goes wrong behind training on any of them is raised as
    CheckpointError on all of them, by the next `check`, `save` or `finish`; it leaves no manifest. uploads: brings each
    to a store, too, once it is complete, and what goes wrong there is raised likewise; see there.
    """

    def __init__(
        self,
        folder: Path,
        ranks: Distributed,
        retention: Retention | None = None,
        uploads: Uploads | None = None,
    ) -> None:
        self.folder = folder
        self.ranks = ranks
        self.retention = retention or Retention()
        self.uploads = uploads
        self.newest: dict[str, float] = {}
        """Metrics of the newest checkpoint; see training.metrics."""
        self._saving: tuple[Path, Behind] | None = None
        self._memory: Future[torch.Tensor] | None = None

    def make_room(self, engines: dict[str, Engine]) -> None:
        """Gets host memory for saves ready behind training, so that the first one needn't wait for it."""
        if self._memory is None and (elements := elements_copied(engines)) is not None:
            on_gpu = any(engine.device.type == "cuda" for engine in engines.values())
            self._memory = begin(partial(host_memory, elements, on_gpu))

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
        self._finish_saving()
        target = self.folder / folder_name(step)
        share = self._explained(target, lambda: together(self.ranks, lambda: self._prepare(target, engines)))
        updates = {name: engine.updates for name, engine in engines.items()}
        shapes = {name: engine.shapes for name, engine in engines.items()}
        kinds = list(share.kinds)

        def complete(written: list[Written]) -> tuple[dict[str, float], list[str]]:
            before_it_counts()
            manifest = assemble(written, shapes, updates, step, images_seen, extra, kinds)
            _write_atomically(target / MANIFEST, manifest.to_json())
            self.retention.apply(target, () if self.uploads is None else self.uploads.held)
            metrics = {
                "checkpoint/last_complete_step": step,
                "checkpoint/bytes": sum(entry.size for _, entry, _ in written),
                "checkpoint/seconds": time.monotonic() - started,
            }
            return metrics, list(manifest.files)

        file = f"rank-{self.ranks.rank:05d}-of-{self.ranks.world:05d}.safetensors"
        self._saving = target, Behind(self.ranks, partial(_write, share, target, file), complete)
        if share.memory is None:  # what training goes on to change is being written
            self._finish_saving()
        return time.monotonic() - started

    def check(self) -> None:
        """Brings forward what goes on behind training, where all ranks have done their part of it. A collective while
        there is something, else nothing."""
        if self._saving is not None and not self.ranks.any(self._saving[1].busy):
            self._advance(*self._saving)
        self._look_after_uploads(Uploads.check)

    def finish(self) -> None:
        """Returns when the last save is a checkpoint on the disk, and in the store. A collective."""
        self._finish_saving()
        self._look_after_uploads(Uploads.finish)

    def restore_newest(self, engines: dict[str, Engine]) -> Manifest | None:
        """Loads the newest whole checkpoint into the engines; None when there is none. A collective.

        The number of ranks and the ZeRO stage may differ from those that saved it. One that is in the store alone is
        brought to the folder first, and one that the store lacks goes there. Damaged ones are named in the log, and set
        aside. Raises CheckpointError when all of them are damaged.
        """
        remote = [] if self.uploads is None else self.uploads.complete()
        chosen = self._newest_whole(remote)
        if chosen is None:
            return None
        checkpoint = self.folder / chosen
        reader = Reader(checkpoint)
        check_same_optimizer(reader.manifest, next(iter(engines.values())).kinds, checkpoint)
        if self.ranks.is_main:
            _tell_of_averages(checkpoint, reader.manifest.kinds, next(iter(engines.values())).kinds)
        mine = sum(entry.size for entry in reader.manifest.files.values()) // self.ranks.world
        with byte_bar(f"restoring {chosen}", mine, self.ranks.is_main) as bar:
            for name, engine in engines.items():
                _load(engine, reader, name, bar.update)
        self.ranks.barrier()
        self.newest = {"checkpoint/last_complete_step": reader.manifest.step}
        if chosen in remote:
            self.newest["checkpoint/uploaded"] = reader.manifest.step
        elif self.uploads is not None:
            self.uploads.add(checkpoint, list(reader.manifest.files))
        return reader.manifest

    def _newest_whole(self, remote: list[str]) -> str | None:
        """The name of the newest whole checkpoint, which is in the folder then; None when there is none at all.

        remote: names of those in the store.
        """
        here = complete_checkpoints(self.folder) if self.ranks.is_main else ()
        local = self.ranks.broadcast_object([path.name for path in here])
        damaged: dict[tuple[str, bool], list[str]] = {}
        # Of the same step the one that is here first.
        for name, is_here in sorted([*((n, True) for n in local), *((n, False) for n in remote)], reverse=True):
            found = [] if is_here else self._fetch(name)
            if not found:
                # Each rank reads some of the files: to check all of them would take one longer than to load them.
                parts = self.ranks.gather_objects(problems(self.folder / name, self.ranks.rank, self.ranks.world))
                found = [problem for part in parts for problem in part]
            if not found:
                self._set_aside(damaged, name)
                if self.uploads is not None and not is_here:
                    self.uploads.fetch_run_files(self.folder.parent)
                return name
            damaged[name, is_here] = found
        if damaged:
            listed = "\n  ".join(problem for found in damaged.values() for problem in found)
            raise CheckpointError(
                f"all checkpoints in {self.folder} are damaged; bring one back from a copy, or remove the folder "
                f"to begin anew:\n  {listed}"
            )
        return None

    def _fetch(self, name: str) -> list[str]:
        """Makes a checkpoint of the store one of the folder's; what is wrong with it, if it can't be had."""
        assert self.uploads is not None
        target = self.folder / name
        self._explained(target, lambda: self._by_main_rank(lambda: _remove(target)))
        text, found = self.uploads.fetch(name, target)
        if not found:
            self._explained(target, lambda: self._by_main_rank(lambda: _write_atomically(target / MANIFEST, text)))
        return found

    def _set_aside(self, damaged: dict[tuple[str, bool], list[str]], chosen: str) -> None:
        """Keeps damaged checkpoints, here or in the store, from being taken for some again."""
        for (name, is_here), found in damaged.items():
            if self.ranks.is_main:
                place = self.folder / name if is_here or self.uploads is None else self.uploads.store.place(name)
                log.warning("%s is damaged, going back to %s: %s", place, chosen, "; ".join(found))
                if name != chosen and (self.folder / name / MANIFEST).exists():
                    (self.folder / name / MANIFEST).rename(self.folder / name / DAMAGED)
            if self.uploads is not None and not is_here:
                self.uploads.set_aside(name)

    def _prepare(self, target: Path, engines: dict[str, Engine]) -> Share:
        if self.ranks.is_main:
            _remove(target)  # a torn attempt at this step, or one that was damaged
        self.make_room(engines)
        return Share(engines, None if self._memory is None else self._memory.result())

    def _finish_saving(self) -> None:
        """Returns when the last save is a checkpoint on the disk. A collective."""
        while self._saving is not None:
            self._saving[1].wait()
            self._advance(*self._saving)

    def _advance(self, target: Path, saving: Behind) -> None:
        """All ranks come here when their work is done."""
        self._saving = None
        if not self._explained(target, saving.advance):
            self._saving = target, saving
            return
        metrics, files = saving.result
        self.newest = self.newest | metrics
        if self.uploads is not None:
            self.uploads.add(target, files)

    def _look_after_uploads(self, look: Callable[[Uploads], dict[str, float]]) -> None:
        if self.uploads is None:
            return
        try:
            self.newest = self.newest | look(self.uploads)
        except Exception:
            self._finish_saving()  # what the disk has, nothing that is wrong with a store may take
            raise

    def _by_main_rank(self, work: Callable[[], None]) -> None:
        """Has it done there, before any rank goes on."""
        together(self.ranks, lambda: work() if self.ranks.is_main else None)

    def _explained(self, target: Path, work: Callable[[], T]) -> T:
        """What `work` of all ranks returns; its failure as that of the checkpoint `target`."""
        try:
            return work()
        except RanksFailed as failure:
            if self.ranks.is_main and not (target / MANIFEST).exists():
                shutil.rmtree(target, ignore_errors=True)  # a full disk needs room for the record of what happened
            raise CheckpointNotWritten(
                f"checkpoint {target} could not be written: {failure}. Those before it stay; see that "
                f"{self.folder} can be written to and has room, then run again"
            ) from None


def _remove(target: Path) -> None:
    if target.exists():
        (target / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(target)


def _write(share: Share, target: Path, file: str) -> Written:
    target.mkdir(parents=True, exist_ok=True)
    entry = share.write(target / file)
    _flush_to_disk(target)
    return file, entry, share.held


def _tell_of_averages(checkpoint: Path, kept: Sequence[str], wanted: Sequence[str]) -> None:
    if new := [kind for kind in wanted if kind not in kept]:
        log.warning("%s doesn't have the average %s: it begins as '%s'", checkpoint.name, ", ".join(new), AVERAGE)
    if gone := [kind for kind in kept if kind not in wanted]:
        log.warning("%s has the average %s, which isn't kept any more", checkpoint.name, ", ".join(gone))


def _load(engine: Engine, reader: Reader, name: str, seen: Callable[[int], object]) -> None:
    entry, kinds = reader.engine(name), reader.manifest.kinds
    with torch.no_grad(), engine.writable():
        for fragment in engine.fragments():
            for kind, tensor in fragment.tensors.items():
                reader.fill(name, kind if kind in kinds else AVERAGE, fragment.parameter, fragment.start, tensor)
                seen(tensor.nbytes)
    engine.set_updates(entry.updates)
    engine.publish_weights()


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
