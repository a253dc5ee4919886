"""Which failures in a row end a run, and which don't."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from training.crash_loop import refuse_crash_loop
from training.errors import ConfigurationError
from training.starts import FAILED, FINISHED, KILLED, STOPPED, Start

JOB, SETTINGS, STEP = "17", "abc", 100
FOLDER = Path("/runs/mine")


def started(
    end: str = FAILED,
    last_step: int = 120,
    error: str | None = None,
    job: str | None = JOB,
    settings: str = SETTINGS,
    step: int = STEP,
    trained: float | None = 1.0,
) -> Start:
    return Start(1, 0.0, None, job, ["here"], 2, settings, step, trained, 2.0, end, error, last_step)


def refused(*starts: Start, most: int = 3) -> bool:
    return message(starts, most) is not None


def message(starts: Sequence[Start], most: int = 3) -> str | None:
    try:
        refuse_crash_loop(starts, FOLDER, JOB, SETTINGS, STEP, most)
    except ConfigurationError as error:
        return str(error)
    return None


def test_as_many_as_are_borne_at_one_step() -> None:
    assert not refused()
    assert not refused(*[started()] * 2)
    assert refused(*[started()] * 3)
    assert not refused(*[started()] * 3, most=4)


def test_kills_count_like_errors_when_they_come_at_the_same_step() -> None:
    assert refused(started(), started(KILLED), started(KILLED))


def test_kills_at_other_steps_are_borne_three_times_as_often() -> None:
    kills = [started(KILLED, last_step) for last_step in range(101, 110)]
    assert not refused(*kills[:8])
    assert refused(*kills)


def test_kills_before_training_began_are_no_step() -> None:
    assert not refused(*[started(KILLED, STEP, trained=None)] * 8)


def test_the_same_error_counts_at_whatever_step() -> None:
    full = [started(last_step=last, error="No space left on device") for last in (110, 112, 109)]
    assert refused(*full)
    assert not refused(*[started(last_step=last, error=str(last)) for last in (110, 112, 109)])


@pytest.mark.parametrize(
    "other",
    [started(job="18"), started(job=None), started(settings="def"), started(step=90), started(FINISHED)],
    ids=["another job", "by hand", "other settings", "an earlier step", "finished"],
)
def test_what_begins_the_count_anew(other: Start) -> None:
    assert not refused(started(), other, started(), started())
    assert refused(other, started(), started(), started())


def test_requests_to_stop_neither_count_nor_begin_it_anew() -> None:
    stopped = started(STOPPED, STEP)
    assert not refused(started(), stopped, stopped, started())
    assert refused(started(), stopped, started(), stopped, started())


def test_the_message_names_the_step_the_errors_and_the_remedy() -> None:
    told = message([started(error="KeyError: 'x'"), started(KILLED), started(error="KeyError: 'x'")])
    assert told is not None and told.startswith(
        "run.max_failures=3: the last 3 starts went on from step 100 and failed"
    )
    assert told.count("KeyError: 'x'") == 1 and "at step 120" in told and "killed without a word" in told
    assert "/runs/mine/starts.jsonl" in told and "run.max_failures=4" in told
