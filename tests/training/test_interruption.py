"""Whatever ends a run, the same command goes on, and the end is that of a run that nothing disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.conftest import finish, ldm
from tests.store import HAS_STORE
from tests.training.conftest import OnRanks
from tests.training.runs import train
from training.checkpoint_files import Reader, complete_checkpoints, load_manifest
from training.distributed import Distributed
from training.launch import RANK_MARK
from training.preemption import STOPPED_STATUS

STORE = (
    *("data.embedded_store=true", "data.url=s3://data/squares", "data.samples_per_shard=20"),
    "data.prepare={_target_: tests.conftest.Squares}",
)
"""The same shards in a store of the run's own."""

STEPS, EVERY = 30, 4
START_SECONDS = 150.0
"""For imports, store and first steps, on a busy machine."""
END_SECONDS = 30.0

Command = subprocess.Popen[str]


class Run:
    """One run folder, and the command that starts it or goes on with it: two ranks, a worker each."""

    def __init__(self, overrides: list[str], folder: Path) -> None:
        self.folder = folder
        self.arguments = [
            *("train", *overrides, "data.workers=1", "run.ranks=2"),
            *(f"steps={STEPS}", f"checkpoint.every={EVERY}", f"run.folder={folder}"),
        ]

    def start(self, *overrides: str) -> Command:
        return ldm(*self.arguments, *overrides, environment={"OMP_NUM_THREADS": "1"})

    @property
    def step(self) -> int:
        """That of the newest complete checkpoint, or 0."""
        newest = next(complete_checkpoints(self.folder / "checkpoints"), None)
        return 0 if newest is None else load_manifest(newest).step

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


def wait_for(condition: Callable[[], bool], command: Command, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert command.poll() is None, f"it ended with {command.returncode}: {command.communicate()[1]}"
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.02)


def family(command: Command) -> list[psutil.Process]:
    """All processes that the command started, and those that they started."""
    return psutil.Process(command.pid).children(recursive=True)


def ranks(command: Command) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(command.pid).children():
        try:
            if RANK_MARK in child.environ():
                found.append(child)
        except psutil.Error:
            continue
    return found


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def assert_gone(processes: list[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while left := living(processes):
        assert time.monotonic() < deadline, f"left behind: {[(p.pid, p.cmdline()) for p in left]}"
        time.sleep(0.02)


@pytest.fixture
def no_orphans() -> Iterator[list[Command]]:
    """Commands to be killed with all their processes should the test fail."""
    commands: list[Command] = []
    yield commands
    for command in commands:
        if command.poll() is None:
            for process in family(command):
                process.kill()
            command.kill()
            command.wait()


@pytest.mark.slow
def test_a_run_that_is_ended_before_it_trains_leaves_nothing(
    tiny_diffusion: list[str], tmp_path: Path, no_orphans: list[Command]
) -> None:
    run = Run(tiny_diffusion, tmp_path / "run")

    # Asked to stop before training began: nothing to save, nothing left, no traceback.
    no_orphans.append(command := run.start())
    wait_for(lambda: len(ranks(command)) == 2, command, START_SECONDS)
    everyone = family(command)
    command.send_signal(signal.SIGTERM)
    status, _, err = finish(command, END_SECONDS)
    assert status == STOPPED_STATUS
    assert "Traceback" not in err and "error" not in err, err
    assert_gone(everyone, 5)
    assert run.step == 0

    # Ranks that can't react are ended by a second request.
    no_orphans.append(command := run.start())
    wait_for(lambda: len(ranks(command)) == 2, command, START_SECONDS)
    everyone = family(command)
    stuck = ranks(command)
    for rank in stuck:
        rank.suspend()
    wait_for(lambda: all(rank.status() == psutil.STATUS_STOPPED for rank in stuck), command, END_SECONDS)
    deadline = time.monotonic() + END_SECONDS
    while living(stuck):
        assert time.monotonic() < deadline, "they outlived a second request"
        command.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    status, _, err = finish(command, END_SECONDS)
    assert status == 128 + signal.SIGTERM
    assert "Traceback" not in err, err
    assert_gone(everyone, 5)


def undisturbed_run(ranks: Distributed, overrides: list[str], folder: Path) -> bool:
    """Without a launcher, data workers or a store, which change nothing."""
    train(ranks, [*overrides, f"checkpoint.every={EVERY}"], folder, STEPS)
    return True


def interrupted(run: Run, no_orphans: list[Command]) -> None:
    """Ctrl-C amid training: the step is finished and saved."""
    before = run.step
    no_orphans.append(command := run.start())
    wait_for(lambda: run.step > before, command, START_SECONDS)
    everyone = family(command)
    command.send_signal(signal.SIGINT)
    status, _, err = finish(command, END_SECONDS)
    assert status == STOPPED_STATUS
    assert "stopped by SIGINT" in err
    assert "Traceback" not in err, err
    assert_gone(everyone, 5)
    assert before < run.step < STEPS
    assert [row["step"] for row in run.rows()] == list(range(run.step + 1))


def robbed_of_a_rank(run: Run, no_orphans: list[Command]) -> None:
    """A rank dies: the job ends by itself and says which and how."""
    before = run.step
    no_orphans.append(command := run.start())
    wait_for(lambda: run.step > before, command, START_SECONDS)
    everyone = family(command)
    [victim] = [rank for rank in ranks(command) if rank.environ()["RANK"] == "1"]
    victim.kill()
    status, _, err = finish(command, END_SECONDS)
    assert status == 128 + signal.SIGKILL
    assert "Traceback" not in err, err
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [
        "error: rank 1 was ended by SIGKILL (out of memory?); the same command goes on from what was saved"
    ]
    assert_gone(everyone, 10)
    assert run.step < STEPS


def robbed_of_its_launcher(run: Run, no_orphans: list[Command]) -> None:
    """The launcher dies: ranks, workers and store end with it."""
    before = run.step
    no_orphans.append(command := run.start(*(STORE if HAS_STORE else ())))
    wait_for(lambda: run.step > before, command, START_SECONDS)
    everyone = family(command)
    assert any("weed" in process.name() for process in everyone) == HAS_STORE
    os.kill(command.pid, signal.SIGKILL)
    command.wait()
    assert_gone(everyone, 10)
    assert run.step < STEPS


@pytest.mark.parametrize(
    "disturbances",
    [
        [robbed_of_a_rank],
        pytest.param([interrupted, robbed_of_a_rank, robbed_of_its_launcher], marks=pytest.mark.slow),
    ],
    ids=["killed", "everything"],
)
def test_a_disturbed_run_ends_as_an_undisturbed_one(
    disturbances: list[Callable[[Run, list[Command]], None]],
    tiny_diffusion: list[str],
    tmp_path: Path,
    no_orphans: list[Command],
    on_ranks: OnRanks,
) -> None:
    run = Run(tiny_diffusion, tmp_path / "disturbed")
    for disturb in disturbances:
        disturb(run, no_orphans)
    before = run.step
    assert before >= EVERY
    no_orphans.append(command := run.start())
    status, _, err = finish(command)
    assert status == 0, err
    assert f"going on from step {before} of {STEPS}" in err

    undisturbed = Run(tiny_diffusion, tmp_path / "undisturbed")
    on_ranks(2, undisturbed_run, tiny_diffusion, undisturbed.folder)
    assert_same(run, undisturbed)


def assert_same(run: Run, other: Run) -> None:
    """Weights, moments and averages bit for bit; each step once in the metrics, with the same loss."""
    assert run.step == other.step == STEPS
    one, two = (Reader(next(complete_checkpoints(r.folder / "checkpoints"))) for r in (run, other))
    assert one.manifest.extra == two.manifest.extra
    assert one.manifest.images_seen == two.manifest.images_seen
    entry = two.engine("model")
    assert one.engine("model").updates == entry.updates == STEPS
    for kind in one.manifest.kinds:
        for name in entry.parameters:
            assert torch.equal(one.tensor("model", kind, name), two.tensor("model", kind, name)), f"{kind} of {name}"
    name = next(iter(entry.parameters))
    assert not torch.equal(one.tensor("model", "param", name), one.tensor("model", "ema", name))
    assert [row["step"] for row in run.rows()] == [row["step"] for row in other.rows()] == list(range(STEPS + 1))
    losses = [[row["train/loss"] for row in r.rows()[1:]] for r in (run, other)]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == STEPS
