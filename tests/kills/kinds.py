"""At which moments a run is killed, and what is wrong with the disk or the store by then."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.data.faulty import FaultyProxy
from tests.kills.attempt import Attempt
from training.checkpoint_files import MANIFEST, complete_checkpoints
from training.checkpoint_store import CheckpointStore
from training.starts import last_row

START_UP_SECONDS = 3.0
MOST_STEPS, STEP_SECONDS = 6, 0.2
"""A kill in training comes after so many steps, and amid what happens then, within so long."""
SAVE_SECONDS, UPLOAD_SECONDS = 0.08, 0.2
"""Others come so long after the first file of a checkpoint was begun, or was there in the store."""
DISK_SECONDS, STORE_SECONDS = 6.0, 14.0
"""A disk is full, or a store away, for as long at most; then everything is killed, if it hasn't ended by then."""
POLL_SECONDS = 0.005
PATIENCE_SECONDS = 120.0
"""For an attempt to come to the moment that is waited for, on a busy machine."""
LEAST_LIMIT, MOST_LIMIT = 1 << 16, 1 << 21
"""Bytes that a file can have when a disk ends amid it; a rank's share of a checkpoint has more."""


@dataclass(frozen=True)
class Scene:
    """An attempt, what it stands on, and the generator that moments are drawn from. disk: holds the run's folder alone;
    None where none of bounded size can be had."""

    attempt: Attempt
    run: Path
    disk: Path | None
    store: CheckpointStore
    proxy: FaultyProxy
    moments: random.Random

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Returns when it is true, or when the attempt has ended by itself. Raises TimeoutError."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.attempt.ended and not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing came about in {PATIENCE_SECONDS:.0f} s")
            time.sleep(POLL_SECONDS)

    def let_go_on(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        """For a random time up to that, or until the attempt has ended by itself."""
        until = time.monotonic() + self.moments.uniform(0, seconds)
        while not self.attempt.ended and time.monotonic() < until:
            meanwhile()
            time.sleep(POLL_SECONDS)

    def let_train(self) -> None:
        """For a random number of steps, and into the next."""
        self.wait_until(self.trains)
        steps = self.moments.randint(0, MOST_STEPS)
        self.wait_until(lambda: self.last_step() >= (self.attempt.resumed_at or 0) + steps)
        self.let_go_on(STEP_SECONDS)

    def trains(self) -> bool:
        """Whether it knows what it goes on from."""
        return self.attempt.resumed_at is not None

    def last_step(self) -> int:
        """The last one made, or that the attempt went on from; 0 before that is known."""
        step, made = last_row(self.run)
        return step if 1e9 * made > self.attempt.began_ns else self.attempt.resumed_at or 0

    def torn(self) -> list[str]:
        """Checkpoints that this attempt is writing, or was when it ended."""
        found: list[str] = []
        if not self.trains():
            return found
        for path in (self.run / "checkpoints").glob("step-*"):
            with contextlib.suppress(FileNotFoundError):
                is_new = any(file.stat().st_ctime_ns > self.attempt.began_ns for file in path.glob("rank-*"))
                if is_new and not (path / MANIFEST).exists():
                    found.append(path.name)
        return found

    def half_uploaded(self) -> list[str]:
        """Checkpoints of the disk that the store has files of, but not all: an attempt that trains brings them there
        before anything else."""
        if not self.trains():
            return []
        here = {path.name for path in complete_checkpoints(self.run / "checkpoints")}
        there = self.store.contents()
        newest = max((name for name, files in there.items() if MANIFEST in files), default="")
        return [name for name in there if name in here and name > newest]


@dataclass(frozen=True)
class Kind:
    """share: of a hundred kills, about so many. reach: returns when the moment has come, or the attempt has ended by
    itself, which only a fault may lead to. loses_disk: the run's folder is gone afterwards, as when another machine
    goes on."""

    name: str
    share: int
    reach: Callable[[Scene], None]
    fault: bool = False
    loses_disk: bool = False


def in_start_up(scene: Scene) -> None:
    """Before the first step, mostly."""
    scene.let_go_on(START_UP_SECONDS)


def in_training(scene: Scene) -> None:
    """At any moment of some steps."""
    scene.let_train()


def in_save(scene: Scene) -> None:
    """After the first file of a checkpoint was begun."""
    scene.wait_until(lambda: bool(scene.torn()))
    scene.let_go_on(SAVE_SECONDS)


def in_upload(scene: Scene) -> None:
    """After the first file of a checkpoint was in the store."""
    scene.wait_until(lambda: bool(scene.half_uploaded()))
    scene.let_go_on(UPLOAD_SECONDS)


def with_disk_full(scene: Scene) -> None:
    """No byte more, whatever the run removes meanwhile."""
    assert scene.disk is not None
    scene.let_train()
    with (scene.disk / BALLAST).open("wb", buffering=0) as file:

        def fill() -> None:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 18))

        scene.let_go_on(DISK_SECONDS, fill)


def with_files_cut(scene: Scene) -> None:
    """A disk that ends amid a file: the ranks may write so many bytes of each, and no more."""
    scene.let_train()
    scene.attempt.limit_files(scene.moments.randrange(LEAST_LIMIT, MOST_LIMIT))
    scene.let_go_on(DISK_SECONDS)


def with_store_away(scene: Scene) -> None:
    """It answers nothing, from the start on or from some step on."""
    if scene.moments.random() < 0.7:
        scene.let_train()
    scene.proxy.shares = {"refused": 1.0}
    scene.let_go_on(STORE_SECONDS)


BALLAST = "ballast"
DISK_FULL = "disk full"
KINDS: Sequence[Kind] = (
    Kind("at start-up", 12, in_start_up),
    Kind("in training", 20, in_training),
    Kind("in a save", 22, in_save),
    Kind("in an upload", 12, in_upload),
    Kind("in an upload, disk lost", 12, in_upload, loses_disk=True),
    Kind(DISK_FULL, 7, with_disk_full, fault=True),
    Kind("disk ends amid a file", 7, with_files_cut, fault=True),
    Kind("store away", 8, with_store_away, fault=True),
)


def drawn(number: int, moments: random.Random, left_out: Sequence[str] = ()) -> list[Kind]:
    """So many kinds in random order, each as often as its share says, and at least once if there are enough."""
    kinds = [kind for kind in KINDS if kind.name not in left_out]
    shares = [kind.share for kind in kinds]
    found = [*kinds, *moments.choices(kinds, shares, k=max(0, number - len(kinds)))][:number]
    moments.shuffle(found)
    return found
