"""The whole trial: a calm run, the same under faults, the verdict."""

from __future__ import annotations

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from data.transfer import Transfers
from evaluation.goodput import Goodput, account
from tests.chaos.disturbed import (
    NOT_MADE,
    NOT_SURVIVED,
    RESTART,
    RIDDEN_OUT,
    SAVE,
    START_UP,
    Disturbance,
    Record,
    steps_for,
)
from tests.chaos.faults import Chaos, Fault
from tests.chaos.place import Store, settings, small_disk
from tests.chaos.supervisor import FINISHED, Supervisor
from tests.chaos.telling import Teller
from tests.chaos.verdict import differences, leftovers, problems_of_uploads
from training.checkpoint_store import CheckpointStore

DISK_FAULT = "disk full"


@dataclass(frozen=True)
class Outcome:
    """What came out. problems: everything that isn't as it must be; none, and nothing was lost."""

    records: list[Record]
    statuses: list[int]
    goodput: Goodput
    seconds: float
    problems: list[str]

    @property
    def survived(self) -> int:
        """Faults after which the run went on."""
        return sum(record.outcome in (RESTART, RIDDEN_OUT) for record in self.records)


def trial(
    folder: Path, faults: Sequence[Fault], seed: int, minutes: float, teller: Teller, uploads: bool = False
) -> Outcome:
    """Trains calmly, then under the faults, for `minutes` at most; both below `folder`, with logs beside them.

    uploads: whether the disturbed run brings its checkpoints to the store, too.
    """
    steps = steps_for(len(faults))
    runs = {name: folder / name for name in ("calm", "disturbed")}
    with ExitStack() as stack:
        store = stack.enter_context(Store(folder / "store"))
        if not stack.enter_context(small_disk(runs["disturbed"] / "checkpoints")):
            teller.line(f"no small disk can be mounted here (only root may): '{DISK_FAULT}' is left out")
            faults = [fault for fault in faults if fault.name != DISK_FAULT]
        overrides = settings(folder, store.url, steps)
        more = {"calm": [], "disturbed": [f"checkpoint.upload={store.uploads}"] if uploads else []}
        supervisors = {
            name: Supervisor(run, [*overrides, *more[name]], store.environment, folder / f"{name}-temporary")
            for name, run in runs.items()
        }
        for supervisor in supervisors.values():
            stack.callback(supervisor.kill_all)
        calm, disturbed = supervisors.values()
        started = time.monotonic()
        teller.line(f"a calm run of {steps} steps")
        calm.start()
        calm.reap()
        teller.line(f"took {time.monotonic() - started:.0f} s; the same under {len(faults)} faults, seed {seed}")
        if calm.statuses != [FINISHED]:
            raise RuntimeError(f"the calm run ended with status {calm.statuses}; see {calm.log}")
        started, began = time.monotonic(), time.time()
        ordeal = Disturbance(Chaos(disturbed, store, random.Random(seed)), steps, teller)
        ordeal.through(faults, started + 60 * minutes)
        seconds = time.monotonic() - started
        problems = [f"{r.fault} at step {r.step}: {r.note}" for r in ordeal.records if r.outcome == NOT_SURVIVED]
        if disturbed.status != FINISHED:
            problems.append(f"the run ended with status {disturbed.status} at step {disturbed.step}")
        else:
            problems += differences(runs["disturbed"], runs["calm"], steps)
            if uploads:
                problems += problems_of_uploads(CheckpointStore(store.uploads, Transfers()), steps)
        problems += leftovers(runs["disturbed"], folder / "disturbed-temporary", began)
        return Outcome(ordeal.records, disturbed.statuses, account(runs["disturbed"]), seconds, problems)


def table(records: Sequence[Record]) -> list[str]:
    """One line a kind of fault: how many were made, when, how they were survived, and what they cost."""
    kinds: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.outcome != NOT_MADE:
            kinds[record.fault].append(record)
    heads = ("fault", "made", "at start-up", "in a save", "ridden out", "restarted", "steps again", "median s")
    lines = [heads]
    everything = [record for found in kinds.values() for record in found]
    for name, found in [*sorted(kinds.items()), ("all", everything)]:
        count = [
            len(found),
            *(sum(record.moment == moment for record in found) for moment in (START_UP, SAVE)),
            *(sum(record.outcome == outcome for record in found) for outcome in (RIDDEN_OUT, RESTART)),
            sum(record.lost_steps for record in found),
        ]
        seconds = statistics.median(record.seconds for record in found) if found else 0.0
        lines.append((name, *map(str, count), f"{seconds:.1f}"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    lines.insert(1, tuple("-" * width for width in widths))
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
