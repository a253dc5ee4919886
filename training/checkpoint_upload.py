"""Complete checkpoints go to a store behind training."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from data.errors import StoreUnavailable
from training.behind import Behind, RanksFailed, together
from training.checkpoint_files import MANIFEST, CheckpointError, Manifest, folder_name, parse_manifest, step_of
from training.checkpoint_store import CheckpointStore
from training.distributed import Distributed
from training.retention import Retention

log = logging.getLogger(__name__)
Upload = tuple[Path, list[str]]
"""A checkpoint on the disk, and its files."""


class Uploads:
    """Brings checkpoints to a store, one at a time: the ranks share its files, the main rank ends with the manifest.

    One that is complete while another is under way waits, and gives way to a newer one, but for those that `retention`
    keeps for ever. So a store that is slower than training doesn't hold it up. All ranks call the same methods in the
    same order. A store that fails on any rank for longer than it is asked again is StoreUnavailable on all of them, and
    whatever else goes wrong CheckpointError.
    """

    def __init__(self, store: CheckpointStore, ranks: Distributed, retention: Retention) -> None:
        self.store = store
        self.ranks = ranks
        self.retention = retention
        self._current: Upload | None = None
        self._work: Behind | None = None
        self._waiting: tuple[Upload, ...] = ()

    @property
    def held(self) -> frozenset[Path]:
        """Checkpoints that must stay on the disk until they are uploaded. May be asked in another thread."""
        uploads = (self._current, *self._waiting)
        return frozenset(upload[0] for upload in uploads if upload is not None)

    def add(self, checkpoint: Path, files: list[str]) -> None:
        """Uploads a complete checkpoint, now or when the one under way is done."""
        stay = tuple(upload for upload in self._waiting if self.retention.keeps_for_ever(step_of(upload[0])))
        for upload in self._waiting:
            if upload not in stay and self.ranks.is_main:
                log.warning("%s isn't uploaded, as the store hadn't time for it before a newer one", upload[0])
        self._waiting = (*stay, (checkpoint, files))
        if self._work is None:
            self._begin_next()

    def check(self) -> dict[str, float]:
        """Brings an upload forward, if this can be done without waiting; returns metrics of one that is done."""
        if self._work is None or self.ranks.any(self._work.busy):
            return {}
        return self._advance(self._work)

    def finish(self) -> dict[str, float]:
        """Returns when all is uploaded; metrics of the last."""
        metrics: dict[str, float] = {}
        if self._current is not None and self.ranks.is_main:
            log.info("waiting until the last checkpoint is in %s", self.store.url)
        while self._work is not None:
            self._work.wait()
            metrics |= self._advance(self._work)
        return metrics

    def complete(self) -> list[str]:
        """Names of the store's checkpoints, newest first."""
        names: list[str] = self._by_main_rank(self.store.complete, f"what is in {self.store.url} can't be told")
        return names

    def fetch(self, name: str, target: Path) -> tuple[str, list[str]]:
        """Brings a checkpoint's files into the folder `target`; the ranks share them.

        Returns the text of its manifest, which isn't written, and what is wrong with it. Checksums of files are yet to
        be looked at.
        """
        place = self.store.place(name)
        text = self._by_main_rank(lambda: self.store.manifest_text(name), f"{place} can't be fetched")
        try:
            manifest = parse_manifest(text, self.store.place(name, MANIFEST))
        except CheckpointError as error:
            return text, [str(error)]
        share = partial(self.store.fetch_files, name, manifest, target, self.ranks.rank, self.ranks.world)
        try:
            parts = together(self.ranks, share, gathered=True)
        except RanksFailed as failure:
            raise _explained(failure, f"{place} can't be fetched: {failure}") from None
        return text, [problem for part in parts for problem in part]

    def fetch_run_files(self, folder: Path) -> None:
        """Brings what goes with checkpoints into the run's folder."""
        self._by_main_rank(partial(self.store.fetch_run_files, folder), f"files of {self.store.url} can't be fetched")

    def set_aside(self, name: str) -> None:
        """Keeps a damaged checkpoint from being taken for one again."""
        self._by_main_rank(partial(self.store.set_aside, name), f"{self.store.place(name)} can't be set aside")

    def _begin_next(self) -> None:
        self._current, *others = self._waiting
        self._waiting = tuple(others)
        checkpoint, files = self._current
        started = time.monotonic()

        def end(_: list[None]) -> dict[str, float]:
            self.store.put_manifest(checkpoint)
            self._clear_away(checkpoint.name)
            return {
                "checkpoint/uploaded": step_of(checkpoint),
                "checkpoint/upload_seconds": time.monotonic() - started,
            }

        mine = files[self.ranks.rank :: self.ranks.world]
        self._work = Behind(self.ranks, partial(self.store.put_files, checkpoint, mine), end)

    def _advance(self, work: Behind) -> dict[str, float]:
        """All ranks come here when none is busy."""
        assert self._current is not None
        checkpoint, _ = self._current
        try:
            if not work.advance():
                return {}
        except RanksFailed as failure:
            self._current, self._work, self._waiting = None, None, ()
            message = (
                f"checkpoint {self.store.place(checkpoint.name)} could not be uploaded: {failure}. {checkpoint} is "
                "whole; the same command goes on from it, and uploads it"
            )
            raise _explained(failure, message) from None
        self._current, self._work = None, None
        if self._waiting:
            self._begin_next()
        metrics: dict[str, float] = work.result
        return metrics

    def _clear_away(self, newest: str) -> None:
        """Removes what must go now that `newest` is complete: see `Retention.apply`."""
        contents = self.store.contents()
        complete = [step_of(name) for name, files in contents.items() if MANIFEST in files]
        gone = {folder_name(step) for step in self.retention.superseded(complete, step_of(newest), self._manifest_of)}
        for name, files in contents.items():
            if name in gone or (name < newest and MANIFEST not in files):
                self.store.remove(name)
        self.store.remove_unfinished()

    def _manifest_of(self, step: int) -> Manifest:
        name = folder_name(step)
        return parse_manifest(self.store.manifest_text(name), self.store.place(name, MANIFEST))

    def _by_main_rank(self, work: Callable[[], Any], failing: str) -> Any:
        """What it returns there, on all ranks."""
        try:
            return together(self.ranks, lambda: work() if self.ranks.is_main else None, gathered=True)[0]
        except RanksFailed as failure:
            raise _explained(failure, f"{failing}: {failure}") from None


def _explained(failure: RanksFailed, message: str) -> Exception:
    return StoreUnavailable(message) if failure.passing else CheckpointError(message)
