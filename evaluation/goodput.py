"""Where a run's time went since it was first submitted: steps that count, and everything else."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.starts import FAILED, KILLED, Start, read_starts


@dataclass(frozen=True)
class Goodput:
    """Seconds of a run by what they were spent on; all but `wall` add up to it.

    wall: since the first submission, or the first start where nobody tells of that. productive: steps that are part of
    the run, without waiting for data. data_wait: that. checkpoint_stall: training stood still for a save. evaluation:
    monitors looked at the model. start_up: from a start to its first step. lost_work: from the last step that is part
    of the run to the end of a start that failed: steps that were made again, and standing still until somebody
    noticed. queue: in Slurm's, between submission, or a start's end, and the next start. stopped: between a start's end
    and the next one where there is no queue: nothing waited for it to go on. other: what is left, such as leaving.
    """

    wall: float
    productive: float
    data_wait: float
    checkpoint_stall: float
    evaluation: float
    start_up: float
    lost_work: float
    queue: float
    stopped: float
    other: float
    restarts: int
    lost_steps: int

    @property
    def fraction(self) -> float:
        """Productive time over the time that counts, 0 to 1."""
        return self.productive / self.counted if self.counted > 0 else 0.0

    @property
    def counted(self) -> float:
        """Wall time but that when the run was stopped."""
        return self.wall - self.stopped

    @property
    def parts(self) -> dict[str, float]:
        """The seconds by name, without `wall`."""
        return {
            "productive": self.productive,
            "data wait": self.data_wait,
            "checkpoint stall": self.checkpoint_stall,
            "evaluation": self.evaluation,
            "start-up": self.start_up,
            "lost work": self.lost_work,
            "queue": self.queue,
            "stopped": self.stopped,
            "other": self.other,
        }


def goodput(starts: Sequence[Start], rows: Iterable[Mapping[str, float]], now: float) -> Goodput:
    """Accounts for a run's time until `now`, or its last start's end.

    starts: in order. rows: the lines of metrics.jsonl, each step once. A row of a step has `time`, when the step was
    made, and `speed/step_seconds`; also what it waited for, `data/wait_seconds`, and what came after it,
    `checkpoint/stall_seconds` and `eval/seconds`, where there was any. Rows of before the first start are left out: of
    what happened then nothing else is known.
    """
    recorded_from = starts[0].time if starts else 0.0
    productive = waited = stalled = evaluated = 0.0
    times: list[float] = []  # when each step was over, with what came after it
    for row in rows:
        if row.get("time", recorded_from) < recorded_from:
            continue
        wait = row.get("data/wait_seconds", 0.0)
        stall, look = row.get("checkpoint/stall_seconds", 0.0), row.get("eval/seconds", 0.0)
        productive += row.get("speed/step_seconds", wait) - wait
        waited, stalled, evaluated = waited + wait, stalled + stall, evaluated + look
        if "time" in row:  # step 0 has none
            times.append(row["time"] + stall + look)
    if not starts:
        return Goodput(0.0, productive, waited, stalled, evaluated, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0)
    submitted = starts[0].submitted
    first = starts[0].time if submitted is None else min(submitted, starts[0].time)
    ends = [start.ended or now for start in starts]
    queue = starts[0].time - first
    stopped = 0.0
    for end, later in zip(ends, starts[1:], strict=False):
        between = max(0.0, later.time - end)
        queue, stopped = (queue, stopped + between) if later.job is None else (queue + between, stopped)
    start_up = lost = 0.0
    next_row = 0
    for start, end in zip(starts, ends, strict=True):
        start_up += (start.trained or end) - start.time
        kept = start.trained
        while next_row < len(times) and times[next_row] <= end:
            kept = max(kept or 0.0, times[next_row]) if times[next_row] >= start.time else kept
            next_row += 1
        if start.end in (FAILED, KILLED) and kept is not None:
            lost += end - kept
    lost_steps = sum(max(0, (start.last_step or 0) - later.step) for start, later in itertools.pairwise(starts))
    wall = max(ends) - first
    known = productive + waited + stalled + evaluated + start_up + lost + queue + stopped
    return Goodput(
        *(wall, productive, waited, stalled, evaluated, start_up, lost, queue, stopped, max(0.0, wall - known)),
        restarts=len(starts) - 1,
        lost_steps=lost_steps,
    )


def account(run_folder: Path) -> Goodput:
    """Where the time of a run went until now, or until it ended."""
    return goodput(read_starts(run_folder), _rows(run_folder / "metrics.jsonl"), time.time())


def _rows(path: Path) -> Iterator[Mapping[str, float]]:
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            with contextlib.suppress(ValueError):  # a torn one
                yield json.loads(line)


def in_words(found: Goodput) -> str:
    """One line: "goodput 83.1% of 3,600 s: productive 83.1%, start-up 4.0%, ...; 2 restarts, 7 steps lost"."""
    counted = max(found.counted, 1e-9)
    spent = {name: seconds for name, seconds in found.parts.items() if seconds > 0 and name != "stopped"}
    parts = ", ".join(f"{name} {seconds / counted:.1%}" for name, seconds in spent.items())
    stopped = f"; stopped for {found.stopped:,.0f} s, which don't count" if found.stopped else ""
    counts = f"{found.restarts} restarts, {found.lost_steps} steps lost"
    return f"goodput {found.fraction:.1%} of {counted:,.0f} s: {parts}; {counts}{stopped}"
