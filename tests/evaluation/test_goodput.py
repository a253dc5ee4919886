"""A run's seconds are accounted for, each once."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from evaluation.goodput import Goodput, goodput, in_words
from training.goodput import GoodputMeter
from training.starts import FAILED, FINISHED, KILLED, STOPPED, Start


def start(
    time: float,
    step: int,
    trained: float | None,
    ended: float | None,
    end: str | None,
    last: int,
    job: str | None = None,
) -> Start:
    return Start(1, time, None, job, ["here"], 1, "", step, trained, ended, end, None, last)


def row(step: int, time: float, seconds: float, wait: float = 0.0, **after: float) -> dict[str, float]:
    return {"step": step, "time": time, "speed/step_seconds": seconds, "data/wait_seconds": wait, **after}


def test_nothing_is_known_of_nothing() -> None:
    assert goodput([], [], 5.0).wall == 0
    assert goodput([], [], 5.0).fraction == 0


def test_a_run_that_failed_waited_and_was_killed() -> None:
    starts = [
        # Submitted at 0, in the queue for 10 s, trains from 30 on; two steps of 10 s, a third one lost in an error.
        Start(1, 10.0, 0.0, "7", ["a"], 1, "", 0, 30.0, 65.0, FAILED, "KeyError", 3),
        # 5 s in the queue; trains from 80 on, makes steps 3 and 4, is asked to stop.
        start(70.0, 2, 80.0, 110.0, STOPPED, 4, job="7"),
        # Killed before it trained.
        start(115.0, 4, None, 120.0, KILLED, 4, job="8"),
        # To the end.
        start(120.0, 4, 130.0, 150.0, FINISHED, 5),
    ]
    rows = [
        {"step": 0, "eval/seconds": 2.0},
        row(1, 42.0, 10.0, wait=1.0),
        row(2, 52.0, 10.0, **{"checkpoint/stall_seconds": 3.0}),
        row(3, 90.0, 10.0),
        row(4, 100.0, 10.0, wait=4.0, **{"eval/seconds": 6.0, "checkpoint/stall_seconds": 1.0}),
        row(5, 140.0, 10.0),
    ]
    found = goodput(starts, rows, now=1e9)
    assert found == Goodput(
        wall=150.0,
        productive=9 + 10 + 10 + 6 + 10,
        data_wait=5.0,
        checkpoint_stall=4.0,
        evaluation=8.0,
        start_up=20.0 + 10.0 + 5.0 + 10.0,
        lost_work=65.0 - 55.0,
        queue=10.0 + 5.0 + 5.0,
        stopped=0.0,
        other=pytest.approx(150 - 45 - 5 - 4 - 8 - 45 - 10 - 20),  # leaving, and the report in the end
        restarts=3,
        lost_steps=1,
    )
    assert sum(found.parts.values()) == pytest.approx(found.wall)
    assert found.fraction == pytest.approx(0.3)
    assert "goodput 30.0% of 150 s" in in_words(found) and "3 restarts, 1 steps lost" in in_words(found)


def test_a_run_that_is_stopped_where_there_is_no_queue() -> None:
    """For however long, it is no worse for it; and in a queue it is."""
    rows = [row(1, 14.0, 10.0), row(2, 1034.0, 10.0)]

    def found(job: str | None) -> Goodput:
        starts = [start(0.0, 0, 4.0, 14.0, STOPPED, 1, job), start(1014.0, 1, 1024.0, 1034.0, FINISHED, 2, job)]
        return goodput(starts, rows, now=1e9)

    stopped, queued = found(None), found("7")
    assert (stopped.stopped, stopped.queue, stopped.wall, stopped.counted) == (1000.0, 0.0, 1034.0, 34.0)
    assert (queued.stopped, queued.queue, queued.counted) == (0.0, 1000.0, 1034.0)
    assert stopped.fraction == 20 / 34 and queued.fraction == 20 / 1034
    assert sum(stopped.parts.values()) == stopped.wall
    told = in_words(stopped)
    assert "goodput 58.8% of 34 s: productive 58.8%" in told and "stopped for 1,000 s, which don't count" in told


def test_the_meter_of_a_run_that_was_stopped(tmp_path: Path) -> None:
    """So that `run/goodput`, and the alert that looks at it, aren't low for it."""
    now = time.time()
    before = replace(start(now - 10_000, 0, now - 9_990, now - 9_900, STOPPED, 9), number=1)
    goes_on = replace(start(now - 10, 9, None, None, None, 0), number=2)
    (tmp_path / "starts.jsonl").write_text("".join(json.dumps(asdict(each)) + "\n" for each in (before, goes_on)))
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row(9, now - 9_901, 90.0)) + "\n")
    told = GoodputMeter(tmp_path, is_main=True).row(0.0, 0.0)
    assert told["run/goodput"] == pytest.approx(90 / 110, abs=0.01)


def test_a_run_that_lives_is_accounted_for_until_now() -> None:
    found = goodput([start(0.0, 0, 4.0, None, None, 0)], [row(1, 9.0, 5.0)], now=10.0)
    assert (found.wall, found.productive, found.start_up, found.other) == (10.0, 5.0, 4.0, 1.0)


def test_a_start_whose_steps_are_all_lost() -> None:
    starts = [start(0.0, 0, 4.0, 20.0, KILLED, 9), start(20.0, 0, 24.0, 34.0, FINISHED, 1)]
    found = goodput(starts, [row(1, 34.0, 10.0)], now=99.0)
    assert (found.lost_work, found.lost_steps, found.productive) == (16.0, 9, 10.0)


def test_steps_of_before_the_record_are_left_out() -> None:
    old, new = row(1, 50.0, 10.0), row(2, 120.0, 10.0)
    found = goodput([start(100.0, 1, 110.0, 120.0, FINISHED, 2)], [old, new], now=999.0)
    assert (found.wall, found.productive, found.fraction) == (20.0, 10.0, 0.5)
