"""The record of a run's starts, starts.jsonl in the run folder. A leaf, on credentials.py alone.

One line a start, in order; a start's own line is written anew when it begins to train and when it ends. One that was
killed can't do that: its line says nothing of an end until the next start completes it from what else is there.
Only the process that holds the run folder, and its main rank, write here.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path

from training.credentials import masked_text

STARTS = "starts.jsonl"
FINISHED, STOPPED, FAILED, KILLED = "finished", "stopped", "failed", "killed"
"""How a start ends: the run came to its last step; it was asked to stop, and saved; an error; nobody could say."""
START_VARIABLE = "LDM_START"
"""Tells ranks the number of the start that they are of."""
LONGEST_ERROR = 300


@dataclass(frozen=True)
class Start:
    """One start of a run. Times are seconds since 1970.

    number: from 1 on. time: when it began. submitted: when its job was, where Slurm tells. job: Slurm's number.
    nodes: host names, the main rank's first. ranks: how many. settings: digest of the configuration. step: it went on
    from. trained: when training began; None: it didn't come to it. ended, end: when and how, None while it runs.
    error: what went wrong, in one line. last_step: made by then, saved or not.
    """

    number: int
    time: float
    submitted: float | None
    job: str | None
    nodes: list[str]
    ranks: int
    settings: str
    step: int
    trained: float | None = None
    ended: float | None = None
    end: str | None = None
    error: str | None = None
    last_step: int | None = None


def read_starts(folder: Path) -> list[Start]:
    """The starts of the run in `folder`, in order; lines that are none, such as a torn one, are left out."""
    path = folder / STARTS
    if not path.exists():
        return []
    known = {field.name for field in fields(Start)}
    starts = []
    for line in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            starts.append(Start(**{name: value for name, value in json.loads(line).items() if name in known}))
    return starts


def begin(folder: Path, job: str | None, nodes: list[str], ranks: int, settings: str, step: int) -> Start:
    """Adds a start to the record. Raises OSError."""
    starts = read_starts(folder)
    number = starts[-1].number + 1 if starts else 1
    start = Start(number, time.time(), submission_time(job), job, nodes, ranks, settings, step)
    _write(folder, [*starts, start])
    return start


def note_training(folder: Path, number: int, step: int) -> None:
    """That a start begins to train now, from this step. Raises OSError."""
    _change(folder, number, lambda start: replace(start, step=step, trained=time.time()))


def note_end(folder: Path, number: int, end: str, error: str | None) -> None:
    """How a start ended, now. Raises OSError."""
    _complete(folder, number, end, error, time.time())


def note_killed(folder: Path, number: int, end: str, error: str | None, ended: float) -> None:
    """How a start ended that couldn't tell: with its last row of metrics, or at `ended`, if later. Raises OSError."""
    _complete(folder, number, end, error, max(last_row(folder)[1], ended))


def last_row(folder: Path) -> tuple[int, float]:
    """Step and time of the newest line of metrics.jsonl; zeros where there is none."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return 0, 0.0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 18)))
        lines = file.read().splitlines()
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            return int(row["step"]), float(row.get("time", 0.0))
    return 0, 0.0


def one_line(text: str) -> str:
    """An error's message in one short line that names no secret: of a traceback the last, else the first."""
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    line = lines[-1 if "Traceback (most recent call last)" in text else 0]
    return masked_text(line.removeprefix("error: "))[:LONGEST_ERROR]


def submission_time(job: str | None) -> float | None:
    """When a Slurm job was put into the queue; None where nobody tells."""
    if job is None:
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError, KeyError, ValueError):
        command = ("scontrol", "show", "job", job, "--oneliner")
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return datetime.fromisoformat(dict(_pairs(told))["SubmitTime"]).timestamp()
    return None


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for word in text.split():
        name, mark, value = word.partition("=")
        if mark:
            yield name, value


def _complete(folder: Path, number: int, end: str, error: str | None, ended: float) -> None:
    step, made = last_row(folder)

    def completed(start: Start) -> Start:
        earliest = start.trained or start.time
        # A row of before is no step of this start, which came to none.
        last = step if start.trained is not None and step > start.step and made >= start.trained else start.step
        return replace(start, ended=max(ended, earliest), end=end, error=error, last_step=last)

    _change(folder, number, completed)


def _change(folder: Path, number: int, changed: Callable[[Start], Start]) -> None:
    _write(folder, [changed(start) if start.number == number else start for start in read_starts(folder)])


def _write(folder: Path, starts: list[Start]) -> None:
    """All lines at once: a crash or a full disk leaves the old ones or the new."""
    partial = folder / f"{STARTS}.partial"
    with partial.open("w") as file:
        file.writelines(json.dumps(asdict(start)) + "\n" for start in starts)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / STARTS)
