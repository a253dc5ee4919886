"""A run under faults: one after the other, at random moments, until there were as many as planned."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.chaos.faults import Chaos, Fault
from tests.chaos.place import EVERY
from tests.chaos.supervisor import FINISHED, Hung

STEPS_A_FAULT = 20
MORE_STEPS = 60
"""After the last fault, so that it comes before the run's end."""
START_SECONDS = 240.0
"""From a start to its first step, on a busy machine."""
START_UP_SHARE = 0.35
START_UP_SECONDS = 14.0
"""Of the faults that follow a start, so many hit it within this time, whether it trains by then or not."""
STEP_SECONDS = 0.4
"""Others hit a random while after the step that they wait for, so in the midst of whatever happens then."""
QUEUE_SECONDS = 1.0
"""At most, before the command is started again."""

RIDDEN_OUT, RESTART, NOT_MADE, NOT_SURVIVED = "ridden out", "restart", "not made", "not survived"
Tell = Callable[[str], None]


@dataclass
class Record:
    """What a fault did. moment: "start-up", "save" or "step". status: that the start ended with, None when it went on.
    lost_steps: made again. seconds: from the fault until a step was made."""

    fault: str
    step: int
    moment: str = ""
    outcome: str = NOT_MADE
    note: str = ""
    status: int | None = None
    lost_steps: int = 0
    seconds: float = 0.0


def steps_for(faults: int) -> int:
    """Steps of a run that is to meet so many faults."""
    return faults * STEPS_A_FAULT + MORE_STEPS


class Disturbance:
    """A run that is started as often as it takes to come to its last step, under one fault after another.

    records: of each fault. tell: is given what happens.
    """

    def __init__(self, chaos: Chaos, steps: int, tell: Tell) -> None:
        self.chaos = chaos
        self.run = chaos.run
        self.steps = steps
        self.tell = tell
        self.records: list[Record] = []
        self._open: list[tuple[Record, float, int]] = []
        """Faults that no step followed yet, when they were made, and the last step by then."""
        self._last = 0
        """The last step that was made before the start, or starts, that ended."""

    def through(self, faults: Sequence[Fault], until: float) -> None:
        """Makes the faults until `until` (by time.monotonic), then lets the run come to its end.

        It may end with a status after which nothing starts it again.
        """
        for number, fault in enumerate(faults):
            if time.monotonic() > until or self.run.over:
                break
            record = Record(fault.name, self.run.step)
            self.records.append(record)
            try:
                self._one(fault, record, target=number * STEPS_A_FAULT)
            except Hung as hung:
                record.outcome, record.note = NOT_SURVIVED, str(hung)
                self.run.kill_all()
                self._ended(record)
            self.tell(f"{number + 1:3d} of {len(faults)}: {described(record)}")
        while not self.run.over:
            if not self.run.lives:
                self._start()
            self.run.wait(self._settled, START_SECONDS)
            self.run.wait(lambda: False, START_SECONDS + self.steps)
            self.run.reap()

    def _start(self) -> None:
        """As a queue does: after a while."""
        time.sleep(self.chaos.moments.uniform(0.0, QUEUE_SECONDS))
        self.run.start()

    def _one(self, fault: Fault, record: Record, target: int) -> None:
        """Waits for the fault's moment, makes it, and waits for what follows. Raises Hung."""
        run, moments = self.run, self.chaos.moments
        at_start = False
        if not run.lives:
            self._start()
            at_start = not fault.training and moments.random() < START_UP_SHARE
            at_start = at_start and len(run.checkpoints) >= fault.checkpoints
        if at_start:
            time.sleep(moments.uniform(0.0, START_UP_SECONDS))
            self._settled()
        elif run.wait(lambda: self._due(fault, target), START_SECONDS):
            time.sleep(moments.uniform(0.0, STEP_SECONDS))
        record.step = run.step
        if run.lives and run.step <= self.steps - EVERY:
            record.moment = ("save" if run.saves else "step") if run.trains else "start-up"
            began = time.monotonic()
            record.note = fault.inflict(self.chaos)
            self._open.append((record, began, run.step))
            if run.wait(lambda: self._settled() and not fault.ends, START_SECONDS):
                record.outcome = RIDDEN_OUT
                return
            record.outcome = RESTART
        self._ended(record)

    def _due(self, fault: Fault, target: int) -> bool:
        run = self.run
        return self._settled() and run.step >= target and len(run.checkpoints) >= fault.checkpoints

    def _ended(self, record: Record) -> None:
        """The start is over, by the fault or before it."""
        self.run.reap()
        record.status = self.run.status
        self._last = max(self._last, self.run.step)
        if self.run.over:
            record.outcome = NOT_MADE if record.status == FINISHED else NOT_SURVIVED

    def _settled(self) -> bool:
        """Whether this start makes steps; those faults before which it didn't are over then, and cost so much."""
        run = self.run
        step = run.step
        if not run.trains or (self._open and self._open[-1][0].status is None and step <= self._open[-1][2]):
            return False
        for record, began, _ in self._open:
            record.seconds = time.monotonic() - began
        if ended := [record for record, _, _ in self._open if record.status is not None]:
            ended[0].lost_steps = max(0, self._last - (run.resumed_at or 0))
        self._last = 0
        self._open.clear()
        return True


def described(record: Record) -> str:
    """One line."""
    status = "" if record.status is None else f" (status {record.status})"
    note = f"; {record.note}" if record.note else ""
    return f"{record.fault}, amid a {record.moment}, step {record.step}: {record.outcome}{status}{note}"
