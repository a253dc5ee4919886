"""A run that is killed again and again, beside one that isn't: what it went on from each time, and how it ended."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit

from data.prepare import prepare
from data.store import EmbeddedStore
from data.stream import Storage
from data.transfer import Transfers
from tests.chaos.place import small_disk
from tests.chaos.telling import Teller
from tests.chaos.verdict import differences
from tests.conftest import Squares, tiny_diffusion_settings, untrained_first_stage
from tests.data.faulty import FaultyProxy
from tests.kills.attempt import RANKS, Attempt
from tests.kills.kinds import BALLAST, DISK_FULL, Kind, Scene
from training.checkpoint_files import complete_checkpoints, problems, step_of
from training.checkpoint_store import CheckpointStore

EVERY = 3
MOST_LOST = 2 * EVERY - 1
"""Steps, where the disk stays: a checkpoint is complete before the next one begins."""
MORE_STEPS = 2 * EVERY
"""After the last kill. How many come before depends on the machine, and losses don't depend on how many there will be,
as the learning rate is constant: the undisturbed run comes afterwards, and makes as many."""
ENDLESS = 1_000_000
PAUSES = (0.0, 0.02, 0.5)
"""Seconds that the second rank lives on without the first."""
END_SECONDS = 1200.0
SETTINGS = (
    f"checkpoint.every={EVERY}",
    "model.conditioners.caption.vocabulary_size=4000",  # most of the weights otherwise
    # Enough for a busy machine, and little enough that some runs give up while the store is away.
    "checkpoint.storage.patience_seconds=8",
    "checkpoint.storage.timeout_seconds=10",
)


@dataclass
class Record:
    """One kill. last: the last step made before it. trained: whether it came so far. amid: a save, an upload. gave_up:
    the run had ended by itself. goes_on_from: the newest complete checkpoint that is left, 0 where there is none."""

    kind: Kind
    last: int = 0
    trained: bool = False
    amid: list[str] = field(default_factory=list)
    gave_up: bool = False
    goes_on_from: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Steps to be made again."""
        return max(0, self.last - self.goes_on_from)

    def __str__(self) -> str:
        amid = f", amid {' and '.join(self.amid)}" if self.amid else ""
        end = "it gave up by itself" if self.gave_up else "killed"
        found = "".join(f"; PROBLEM: {problem}" for problem in self.problems)
        return f"{self.kind.name}: {end} at step {self.last}{amid}; to go on from step {self.goes_on_from}{found}"


@dataclass(frozen=True)
class Outcome:
    """problems: of no kill alone, but of the end: what isn't bit for bit as in the undisturbed run."""

    records: list[Record]
    steps: int
    problems: list[str]

    @property
    def survived(self) -> int:
        """Kills after which the run went on from the newest complete checkpoint, and the end was as without them."""
        return 0 if self.problems else sum(not record.problems for record in self.records)


def trial(folder: Path, kinds: Sequence[Kind], seed: int, teller: Teller) -> Outcome:
    """Trains with the kills, then undisturbed, both below `folder`, where the ranks' output stays, too."""
    calm, log = folder / "undisturbed", folder / "ranks.log"
    weights, squares = folder / "first_stage.safetensors", folder / "squares"
    untrained_first_stage(weights)
    prepare(Squares(), str(squares), Storage(), samples_per_shard=20)
    overrides = [*tiny_diffusion_settings(squares, weights), *SETTINGS]
    with ExitStack() as stack:
        store = stack.enter_context(EmbeddedStore(folder / "store"))
        stack.enter_context(mock.patch.dict(os.environ, store.environment))
        address = urlsplit(store.endpoint_url)
        proxy = stack.enter_context(FaultyProxy((str(address.hostname), int(address.port or 0)), {}, 0.0))
        disk = folder / "disk"
        has_disk = stack.enter_context(small_disk(disk))
        if not has_disk:
            teller.line(f"no small disk can be mounted here (only root may): '{DISK_FULL}' is left out")
            kinds = [kind for kind in kinds if kind.name != DISK_FULL]
        url = f"{store.url}/run"
        run = KilledRun(
            [*overrides, f"checkpoint.upload={url}"],
            disk / "disturbed",
            {**store.environment, "AWS_ENDPOINT_URL": proxy.url},
            log,
            disk if has_disk else None,
            CheckpointStore(url, Transfers()),
            proxy,
            random.Random(seed),
        )
        teller.line(f"a run with {len(kinds)} kills, seed {seed}")
        for number, kind in enumerate(kinds):
            run.kill(kind)
            teller.line(f"{number + 1:3d} of {len(kinds)}: {run.records[-1]}")
        steps = run.newest() + MORE_STEPS
        teller.line(f"the same comes to its end at step {steps}, and one that nobody kills makes as many")
        found = run.come_to_its_end(steps)
        Attempt(overrides, calm, steps, {}, log).finish(END_SECONDS)
        return Outcome(run.records, steps, found or differences(run.folder, calm, steps))


@dataclass
class KilledRun:
    """See `Scene`; environment: of its ranks, who find the store behind the proxy."""

    overrides: list[str]
    folder: Path
    environment: dict[str, str]
    log: Path
    disk: Path | None
    store: CheckpointStore
    proxy: FaultyProxy
    moments: random.Random
    records: list[Record] = field(default_factory=list)

    def kill(self, kind: Kind) -> None:
        """Starts the run, kills it, and looks at what there is to go on from."""
        before, attempt = self.newest(), self._start(ENDLESS)
        scene = Scene(attempt, self.folder, self.disk, self.store, self.proxy, self.moments)
        self.records.append(record := Record(kind))
        try:
            kind.reach(scene)
        except TimeoutError as error:
            record.problems.append(str(error))
        record.gave_up = attempt.ended
        attempt.kill(self.moments.sample(range(RANKS), RANKS), self.moments.choice(PAUSES))
        self.proxy.shares = {}
        if self.disk is not None:
            (self.disk / BALLAST).unlink(missing_ok=True)
        record.last = scene.last_step()
        record.trained = scene.trains()
        amid = {"a save": scene.torn(), "an upload": scene.half_uploaded()}
        record.amid = [what for what, found in amid.items() if found]
        if kind.loses_disk:
            shutil.rmtree(self.folder)
        record.goes_on_from = self.newest()
        record.problems += self._damage()
        if record.trained and attempt.resumed_at != before:
            record.problems.append(f"it went on from step {attempt.resumed_at}, and there was step {before}")
        if record.gave_up and not kind.fault:
            record.problems.append("it ended by itself")
        if not kind.loses_disk and record.goes_on_from < before:
            record.problems.append(f"the checkpoint of step {before} was complete, and is gone")
        if not kind.loses_disk and record.trained and record.lost > MOST_LOST:
            record.problems.append(f"{record.lost} steps are lost, more than {MOST_LOST}")

    def come_to_its_end(self, steps: int) -> list[str]:
        """Lets it make so many; what went wrong."""
        before, attempt = self.newest(), self._start(steps)
        try:
            attempt.finish(END_SECONDS)
        except RuntimeError as error:
            return [str(error)]
        return [] if attempt.resumed_at == before else [f"it went on from step {attempt.resumed_at}, not {before}"]

    def _start(self, steps: int) -> Attempt:
        return Attempt(self.overrides, self.folder, steps, self.environment, self.log)

    def newest(self) -> int:
        """The step of the newest checkpoint of the disk and the store; 0 where there is none."""
        here = (path.name for path in complete_checkpoints(self.folder / "checkpoints"))
        return max((step_of(name) for name in (*here, *self.store.complete())), default=0)

    def _damage(self) -> list[str]:
        """What is wrong with the newest complete checkpoints, one of the disk and one of the store."""
        newest = next(complete_checkpoints(self.folder / "checkpoints"), None)
        found = [] if newest is None else problems(newest)
        there = self.store.complete()
        return found + (self.store.problems(there[0]) if there else [])
