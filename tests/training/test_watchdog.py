"""Who hangs is told of by everybody's own stacks; who only takes long, or was stopped, isn't disturbed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import finish
from tests.training.test_interruption import START_SECONDS, Run, assert_gone, family, no_orphans, ranks, wait_for
from training.checkpoint_files import newest_complete, step_of
from training.failures import FAILURES, path_of
from training.starts import FAILED, FINISHED, read_starts
from training.watchdog import HUNG_STATUS, SLOW_STEP, Watchdog

__all__ = ["no_orphans"]

RANK = """
import sys, time
from pathlib import Path
from training.watchdog import Watchdog

def wait_for_peers():
    time.sleep(60)

rank, seconds, hangs, folder = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
with Watchdog(seconds, folder, 1, rank, 3, lambda step: f"samples are {step} in s3://bucket/a.tar") as watchdog:
    watchdog.finished(7)
    print("ready", flush=True)
    if hangs == "slow steps":
        for step in range(8, 14):
            time.sleep(0.6 * seconds)
            watchdog.finished(step)
    elif hangs == "a long look":
        with watchdog.paused():
            time.sleep(2 * seconds)
        watchdog.finished(8)
    else:
        wait_for_peers()
"""


@pytest.fixture
def start_rank(tmp_path: Path) -> Iterator[Callable[[int, float, str], subprocess.Popen[str]]]:
    """Starts a process that is one of three ranks and has made seven steps."""
    processes: list[subprocess.Popen[str]] = []

    def start(rank: int, seconds: float, hangs: str = "yes") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", RANK, str(rank), str(seconds), hangs, str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_every_rank_leaves_its_stacks_and_one_speaks_for_all(
    start_rank: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    # They come to the hang at different times; rank 2 never leaves a word.
    processes = [start_rank(0, 3.0), start_rank(1, 4.0)]
    told = [process.communicate(timeout=90)[1] for process in processes]
    assert [process.returncode for process in processes] == [HUNG_STATUS] * 2
    assert "error: " not in told[1]
    [message] = [line for line in told[0].splitlines() if line.startswith("error: ")]
    assert "no step was finished for" in message and "step 7 is the last" in message
    assert re.search(r"ranks 0-1 in no code of ours, in wait_for_peers", message), message
    assert "rank 2 left no word" in message and str(tmp_path / FAILURES) in message
    for rank in (0, 1):
        text = path_of(tmp_path, 1, rank).read_text()
        assert "samples are 7 in s3://bucket/a.tar" in text
        assert "in wait_for_peers" in text and "in _watch" in text, "of all threads"


def test_what_takes_its_time_is_let_alone(start_rank: Callable[..., subprocess.Popen[str]]) -> None:
    processes = [start_rank(0, 2.0, patience) for patience in ("slow steps", "a long look")]  # side by side: they sleep
    for process in processes:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err


@pytest.mark.slow
def test_a_job_that_was_suspended_goes_on(start_rank: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = start_rank(0, 3.0, "slow steps")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_none_watches_nothing(tmp_path: Path) -> None:
    before = threading.active_count()
    with Watchdog(None, tmp_path, 1, 0, 1, str) as watchdog:
        watchdog.finished(1)
        assert threading.active_count() == before


@pytest.mark.slow
@pytest.mark.parametrize("stopped", ["a rank", "a data worker"])
def test_a_run_that_hangs_ends_and_goes_on(
    stopped: str, tiny_diffusion: list[str], tmp_path: Path, no_orphans: list[subprocess.Popen[str]]
) -> None:
    seconds = 8
    run = Run(tiny_diffusion, tmp_path / "run")
    settings = (f"watchdog.seconds={seconds}", "data.storage.patience_seconds=1", "steps=100000")
    no_orphans.append(command := run.start(*settings))
    wait_for(lambda: run.step >= 4, command, START_SECONDS)
    everyone = family(command)
    [second] = [rank for rank in ranks(command) if rank.environ()["RANK"] == "1"]
    victim = second if stopped == "a rank" else data_worker(second)
    os.kill(victim.pid, signal.SIGSTOP)
    status, _, err = finish(command, SLOW_STEP * seconds + 120)
    assert status == HUNG_STATUS, err
    [message] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert re.search(r"rank 0 in \w+ \(training/(distributed|engine).py", message), err
    if stopped == "a rank":
        assert "rank 1 left no word" in message
    else:
        assert re.search(r"rank 1 in loaded \(data/workers.py", message), message
        text = path_of(run.folder, 1, 1).read_text()
        assert re.search(r"samples are \d+.* in /.*\.tar", text), text
    assert_gone(everyone, 10)
    [start] = read_starts(run.folder)
    assert start.end == FAILED and start.error is not None and "no step was finished" in start.error
    assert start.last_step is not None and start.last_step >= run.step
    newest = newest_complete(run.folder / "checkpoints")  # that of a step right before may not have been complete yet
    assert newest is not None and start.last_step - step_of(newest) < 8
    no_orphans.append(command := run.start(f"steps={run.step + 3}"))
    status, _, err = finish(command)
    assert status == 0, err
    assert f"going on from step {step_of(newest)} of" in err
    assert [start.end for start in read_starts(run.folder)] == [FAILED, FINISHED]
    row = run.rows()[-1]
    assert row["run/restarts"] == 1 and 0 < row["run/goodput"] < 1
    assert row["run/lost_steps"] == start.last_step - read_starts(run.folder)[1].step
    assert "goodput " in err and "1 restarts" in err


def data_worker(rank: psutil.Process) -> psutil.Process:
    """The process that loads for a rank."""
    workers = [child for child in rank.children() if "resource_tracker" not in " ".join(child.cmdline())]
    assert len(workers) == 1, workers
    return workers[0]
