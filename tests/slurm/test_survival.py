"""Whatever stops a job, Slurm starts it again, and its losses are those of a run that nobody disturbed."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import PROJECT
from tests.slurm.cluster import Cluster, reason_to_skip, wait_for
from training.checkpoint_files import complete_checkpoints, step_of
from training.starts import FAILED, FINISHED, KILLED, STOPPED, Start, read_starts

pytestmark = pytest.mark.slow
STEPS, EVERY = 40, 5
START_SECONDS = 240.0
"""For the queue, imports and first steps, on a busy machine."""


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[Cluster]:
    """Nodes without GPUs, of which one may die and two are left."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    with Cluster({"alpha": 0, "beta": 0, "gamma": 0}, silent_seconds=20) as running:
        yield running


class Run:
    """A run on `nodes` nodes, one rank each."""

    def __init__(self, cluster: Cluster, overrides: list[str], folder: Path) -> None:
        self.cluster = cluster
        self.overrides = overrides
        self.folder = folder
        self.log = folder.with_suffix(".log")

    def submit(self, *overrides: str, nodes: int = 2) -> str:
        own = [f"run.folder={self.folder}", f"steps={STEPS}", f"checkpoint.every={EVERY}", "run.seed=3"]
        return self.cluster.client(
            *("sbatch", "--parsable", f"--nodes={nodes}", f"--output={self.log}", "slurm/train.sbatch"),
            *(*self.overrides, *own, *overrides),
            environment={"LDM_VENV": sys.prefix, "OMP_NUM_THREADS": "1"},
            cwd=PROJECT,
        )

    def wait_for_step(self, step: int) -> None:
        """Until a checkpoint of that step or a later one is there."""
        checkpoints = self.folder / "checkpoints"
        wait_for(lambda: any(step_of(path) >= step for path in complete_checkpoints(checkpoints)), START_SECONDS)

    def rank_on(self, node: str) -> psutil.Process:
        """The process of the rank on a node."""
        # Beside it there is the task's shell, whose arguments are the same.
        [rank] = [
            process
            for process in self.cluster.processes(node)
            if process.name() != "bash" and "train" in process.cmdline() and "ldm" in " ".join(process.cmdline())
        ]
        return rank

    def ended(self, job: str, state: str = "COMPLETED") -> dict[str, str]:
        found = self.cluster.wait_for_end(job, 2 * START_SECONDS)
        assert found["JobState"] == state, self.log.read_text()
        return found

    def starts(self) -> list[Start]:
        return read_starts(self.folder)

    def losses(self) -> list[float]:
        """Of all steps; each is there once."""
        rows: list[dict[str, Any]] = [
            json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()
        ]
        assert [row["step"] for row in rows] == list(range(STEPS + 1))
        return [row["train/loss"] for row in rows[1:]]


@pytest.fixture(scope="module")
def undisturbed(
    three_nodes: Cluster, tiny_diffusion: list[str], tmp_path_factory: pytest.TempPathFactory
) -> list[float]:
    """The losses of a run on two nodes that nobody disturbed."""
    run = Run(three_nodes, tiny_diffusion, tmp_path_factory.mktemp("slurm") / "straight")
    run.ended(job := run.submit())
    [start] = run.starts()
    assert (start.job, start.nodes, start.ranks, start.end) == (job, ["alpha", "beta"], 2, FINISHED)
    assert start.submitted is not None and start.submitted <= start.time
    return run.losses()


@pytest.mark.parametrize("every", [EVERY, 1], ids=["mid-step", "mid-save"])
@pytest.mark.parametrize("how", ["requeue", "signal"])
def test_preempted(
    how: str, every: int, three_nodes: Cluster, undisturbed: list[float], tiny_diffusion: list[str], tmp_path: Path
) -> None:
    run = Run(three_nodes, tiny_diffusion, tmp_path / "run")
    job = run.submit(f"checkpoint.every={every}")
    run.wait_for_step(EVERY)
    command = ("scontrol", "requeue") if how == "requeue" else ("scancel", "--signal=USR1")
    three_nodes.client(*command, job)
    assert run.ended(job)["Restarts"] == "1"
    first, second = run.starts()
    assert (first.end, second.end) == (STOPPED, FINISHED)
    assert first.last_step == second.step, "no step is lost"
    assert run.losses() == undisturbed


def test_a_killed_rank(
    three_nodes: Cluster, undisturbed: list[float], tiny_diffusion: list[str], tmp_path: Path
) -> None:
    run = Run(three_nodes, tiny_diffusion, tmp_path / "run")
    job = run.submit()
    run.wait_for_step(EVERY)
    run.rank_on("beta").kill()
    assert run.ended(job)["Restarts"] == "1"
    first, second = run.starts()
    assert (first.end, first.error, second.end) == (KILLED, "rank 1 ended without a word", FINISHED)
    assert run.losses() == undisturbed


def test_a_hung_collective(
    three_nodes: Cluster, undisturbed: list[float], tiny_diffusion: list[str], tmp_path: Path
) -> None:
    run = Run(three_nodes, tiny_diffusion, tmp_path / "run")
    job = run.submit("watchdog.seconds=6", "data.storage.patience_seconds=1")
    run.wait_for_step(EVERY)
    run.rank_on("beta").send_signal(signal.SIGSTOP)
    assert run.ended(job)["Restarts"] == "1"
    first, second = run.starts()
    assert (first.end, second.end) == (FAILED, FINISHED)
    assert first.error is not None and "no step was finished" in first.error
    assert "rank 1 left no word" in run.log.read_text()
    assert run.losses() == undisturbed


def test_a_crash_loop_ends(three_nodes: Cluster, tiny_diffusion: list[str], tmp_path: Path) -> None:
    run = Run(three_nodes, tiny_diffusion, tmp_path / "run")
    (run.folder / "checkpoints").mkdir(parents=True)
    (run.folder / "checkpoints" / "step-00000010").write_text("no checkpoint can be written here")
    ended = run.ended(run.submit("run.max_failures=2"), "FAILED")
    assert (ended["Restarts"], ended["ExitCode"]) == ("3", "2:0")
    starts = run.starts()
    assert [start.step for start in starts] == [0, EVERY, EVERY], "the first one got on: it doesn't count"
    assert all(start.error is not None and "step-00000010 could not be written" in start.error for start in starts)
    assert "run.max_failures=2" in run.log.read_text()


def test_other_numbers_of_nodes(
    three_nodes: Cluster, undisturbed: list[float], tiny_diffusion: list[str], tmp_path: Path
) -> None:
    run = Run(three_nodes, tiny_diffusion, tmp_path / "run")
    run.ended(run.submit(f"steps={2 * EVERY}"))
    run.ended(run.submit(f"steps={4 * EVERY}", nodes=1))
    run.ended(run.submit(nodes=2))
    assert [(start.ranks, start.step) for start in run.starts()] == [(2, 0), (1, 2 * EVERY), (2, 4 * EVERY)]
    assert run.losses() == pytest.approx(undisturbed, rel=1e-4)


def test_a_killed_node(
    three_nodes: Cluster, undisturbed: list[float], tiny_diffusion: list[str], tmp_path: Path
) -> None:
    """The last one, as the node stays dead."""
    run = Run(three_nodes, tiny_diffusion, tmp_path / "run")
    job = run.submit()
    run.wait_for_step(EVERY)
    three_nodes.kill("beta")
    assert run.ended(job)["Restarts"] == "1"
    first, second = run.starts()
    assert (first.end, second.end) == (KILLED, FINISHED)
    assert (first.nodes, second.nodes) == (["alpha", "beta"], ["alpha", "gamma"])
    assert run.losses() == undisturbed
