"""A run under faults: one after the other, at random moments, until there were as many as planned."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.faults import Chaos, Fault, NotMade
from tests.chaos.place import EVERY
from tests.chaos.supervisor import FINISHED, Hung
from tests.chaos.telling import Teller

STEPS_A_FAULT = 10
MORE_STEPS = 40
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
TRIES = 5
"""For a fault that can't be made, as the start has just ended, or nothing is there that it could hit."""

RIDDEN_OUT, RESTART, NOT_MADE, NOT_SURVIVED = "ridden out", "restarted", "not made", "not survived"
START_UP, SAVE, STEP = "start-up", "save", "step"


@dataclass
class Record:
    """What a fault did. step, moment: amid which it was made. status: that the start ended with, None when it went on.
    lost_steps: made again for it. seconds: from the fault until a step was made."""

    fault: str
    step: int
    moment: str = START_UP
    outcome: str = NOT_MADE
    note: str = ""
    status: int | None = None
    lost_steps: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        status = "" if self.status is None else f" (status {self.status})"
        note = f"; {self.note}" if self.note else ""
        return f"{self.fault}, amid a {self.moment}, step {self.step}: {self.outcome}{status}{note}"


@dataclass(frozen=True)
class _Unsettled:
    """A fault that no step has followed yet, when it was made, and the last step by then."""

    record: Record
    began: float
    step: int


def steps_for(faults: int) -> int:
    """Steps of a run that is to meet so many faults."""
    return faults * STEPS_A_FAULT + MORE_STEPS


class Disturbance:
    """A run that is started as often as it takes to come to its last step, under one fault after another.

    records: of each fault, and of each try to make one.
    """

    def __init__(self, chaos: Chaos, steps: int, teller: Teller) -> None:
        self.chaos = chaos
        self.run = chaos.run
        self.steps = steps
        self.teller = teller
        self.records: list[Record] = []
        self._unsettled: list[_Unsettled] = []
        self._last = 0
        """The last step that was made before the start, or starts, that ended."""
        self._doing = ""

    def through(self, faults: Sequence[Fault], until: float) -> None:
        """Makes the faults until `until` (by time.monotonic), then lets the run come to its end.

        It may end with a status after which nothing starts it again.
        """
        for number, fault in enumerate(faults):
            for _ in range(TRIES):
                if time.monotonic() > until or self.run.over:
                    break
                self._doing = f"fault {number + 1} of {len(faults)}, {fault.name}"
                self.records.append(record := Record(fault.name, self.run.step))
                self._make_and_follow(fault, record, target=number * STEPS_A_FAULT)
                self.teller.line(f"{number + 1:3d} of {len(faults)}: {record}")
                if record.outcome != NOT_MADE:
                    break
        self._doing = "no more faults"
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

    def _make_and_follow(self, fault: Fault, record: Record, target: int) -> None:
        """Waits for the fault's moment, makes it, and waits for a step after it, or for the start's end."""
        run = self.run
        try:
            self._await_moment(fault, target)
            record.step = run.step
            if run.lives and run.step <= self.steps - EVERY:
                record.moment = (SAVE if run.saves else STEP) if run.trains else START_UP
                self._unsettled.append(_Unsettled(record, time.monotonic(), run.step))
                record.note = fault.inflict(self.chaos)
                record.outcome = RESTART
                if run.wait(lambda: self._settled() and not fault.ends, START_SECONDS):
                    record.outcome = RIDDEN_OUT
                    return
        except NotMade as reason:
            record.note = str(reason)
            if run.lives:
                return
        except Hung as hung:
            record.outcome, record.note = NOT_SURVIVED, str(hung)
            run.kill_all()
        self._ended(record)

    def _await_moment(self, fault: Fault, target: int) -> None:
        """For a random time into a start, or beyond the target step."""
        run, moments = self.run, self.chaos.moments
        if not run.lives:
            self._start()
            if not fault.training and len(run.checkpoints) >= fault.checkpoints and moments.random() < START_UP_SHARE:
                time.sleep(moments.uniform(0.0, START_UP_SECONDS))
                self._settled()
                return

        def due() -> bool:
            return self._settled() and run.step >= target and len(run.checkpoints) >= fault.checkpoints

        if run.wait(due, START_SECONDS):
            time.sleep(moments.uniform(0.0, STEP_SECONDS))

    def _ended(self, record: Record) -> None:
        """The start is over, by the fault or before it."""
        self.run.reap()
        record.status = self.run.status
        self._last = max(self._last, self.run.step)
        if not any(unsettled.record is record for unsettled in self._unsettled):
            self._unsettled.append(_Unsettled(record, time.monotonic(), self._last))
        if self.run.over:
            record.outcome = NOT_MADE if record.status == FINISHED else NOT_SURVIVED

    def _settled(self) -> bool:
        """Whether this start makes steps; those faults before which it didn't are over then, and cost so much."""
        run = self.run
        step = run.step
        self.teller.live(f"{self._doing}; start {len(run.statuses) + 1}, step {step} of {self.steps}")
        newest = self._unsettled[-1] if self._unsettled else None
        if not run.trains or (newest is not None and newest.record.status is None and step <= newest.step):
            return False
        for unsettled in self._unsettled:
            unsettled.record.seconds = time.monotonic() - unsettled.began
        if ended := [unsettled.record for unsettled in self._unsettled if unsettled.record.status is not None]:
            ended[0].lost_steps = max(0, self._last - (run.resumed_at or 0))
        self._unsettled.clear()
        self._last = 0
        return True
