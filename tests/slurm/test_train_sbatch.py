"""slurm/train.sbatch on real daemons: who is started where, what an exit status leads to, and what a requeue keeps."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT
from tests.slurm.cluster import Cluster, wait_for
from tests.training.conftest import OnRanks
from tests.training.runs import train
from training.distributed import Distributed

SCRIPT = "slurm/train.sbatch"
STEPS = 40

STAND_IN = """#!/bin/sh
# Stands for `ldm`: notes who it is, then does as the file `behaviour` says.
here=$(dirname "$0")
start=${SLURM_RESTART_COUNT:-0}
{ hostname; env | grep -E '^(SLURM_|MASTER_|CUDA_)'; } > "$here/start$start-task$SLURM_PROCID.env"
printf '%s\\n' "$@" > "$here/start$start-task$SLURM_PROCID.arguments"
. "$here/behaviour"
"""
WAITS = "for _ in $(seq 900); do sleep 0.1; done; exit 4"  # long enough for every test, and not for ever


def make_stand_in(venv: Path, behaviour: str) -> Path:
    """A virtual environment whose `ldm` trains nothing: it writes bin/start<N>-task<R>.env and .arguments."""
    program = venv / "bin" / "ldm"
    program.parent.mkdir(parents=True)
    program.write_text(STAND_IN)
    program.chmod(0o755)
    (venv / "bin" / "behaviour").write_text(behaviour)
    return venv


def submit(cluster: Cluster, nodes: str, log: Path, venv: Path, overrides: list[str], *options: str) -> str:
    """Returns the number of a job on the named nodes, submitted as a user does: from the project's folder."""
    count = len(nodes.split(","))
    return cluster.client(
        *("sbatch", "--parsable", f"--nodes={count}", f"--nodelist={nodes}", f"--output={log}", *options, SCRIPT),
        *overrides,
        environment={"LDM_VENV": str(venv), "OMP_NUM_THREADS": "1"},
        cwd=PROJECT,
    )


def test_every_gpu_gets_a_rank_and_all_know_where_to_meet(cluster: Cluster, tmp_path: Path) -> None:
    overrides = ["experiment=demo", "run.name=two words", "data.train=[a,b]", "data.url=s3://bucket/*"]
    stand_in = make_stand_in(tmp_path / "venv", "exit 0")
    job = submit(cluster, "gpu1,gpu2", tmp_path / "log", stand_in, overrides)
    assert cluster.wait_for_end(job, 30)["JobState"] == "COMPLETED"
    places = []
    for rank in range(4):
        host, *lines = (stand_in / "bin" / f"start0-task{rank}.env").read_text().splitlines()
        variables = dict(line.partition("=")[::2] for line in lines)
        assert variables["SLURM_NTASKS"] == "4"
        assert variables["MASTER_ADDR"] == "gpu1"
        assert variables["MASTER_PORT"] == str(10000 + int(job))
        assert variables["CUDA_VISIBLE_DEVICES"] == "0,1"
        assert (stand_in / "bin" / f"start0-task{rank}.arguments").read_text().splitlines() == ["train", *overrides]
        places.append((host, variables["SLURM_LOCALID"]))
    assert places == [("gpu1", "0"), ("gpu1", "1"), ("gpu2", "0"), ("gpu2", "1")]
    assert not (stand_in / "bin" / "start0-task4.env").exists()


def test_what_would_fail_again_stays_a_failure(cluster: Cluster, tmp_path: Path) -> None:
    stand_in = make_stand_in(tmp_path / "venv", "exit 2")
    ended = cluster.wait_for_end(submit(cluster, "gpu1,gpu2", tmp_path / "log", stand_in, []), 30)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0")


@pytest.mark.slow
def test_every_other_failure_goes_back_to_the_queue(cluster: Cluster, tmp_path: Path) -> None:
    """A bug or an unknown error; a hung step; a store that is gone; and a rank that was killed."""
    behaviour = "case $start in 0) exit 1;; 1) exit 124;; 2) exit 74;; 3) [ $SLURM_PROCID = 1 ] && kill -9 $$;; esac"
    stand_in = make_stand_in(tmp_path / "venv", f"{behaviour}\nexit 0")
    ended = cluster.wait_for_end(submit(cluster, "gpu1,gpu2", tmp_path / "log", stand_in, []), 120)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "4")
    assert re.findall(r"failed with status (\d+)", (tmp_path / "log").read_text()) == ["1", "124", "74", "137"]


def test_missing_environment_is_named(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, "gpu1", tmp_path / "log", tmp_path / "nowhere", [])
    assert cluster.wait_for_end(job, 30)["JobState"] == "FAILED"
    assert f"{tmp_path}/nowhere/bin/ldm isn't there" in (tmp_path / "log").read_text()


def test_cancelled_job_does_not_come_back(cluster: Cluster, tmp_path: Path) -> None:
    # As the ranks do: SIGTERM, too, makes them save and leave with 75.
    stand_in = make_stand_in(tmp_path / "venv", f"trap 'sleep 1; exit 75' TERM\n{WAITS}")
    job = submit(cluster, "gpu1,gpu2", tmp_path / "log", stand_in, [])
    wait_for((stand_in / "bin" / "start0-task3.env").exists, 30)
    cluster.client("scancel", job)
    assert cluster.wait_for_end(job, 30)["JobState"] == "CANCELLED"
    wait_for(lambda: not cluster.client("squeue", "--noheader"), 20)
    assert cluster.job(job)["JobState"] == "CANCELLED"
    assert cluster.job(job)["Restarts"] == "0"


@pytest.fixture(scope="module")
def job_near_its_time_limit(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Number and log of a job on the GPU nodes that leaves with 75 when warned, and is content at its second start.

    Slurm looks at its clocks every half a minute, so a warning 55 s before a limit of a minute comes by then.
    """
    folder = tmp_path_factory.mktemp("time_limit")
    behaviour = f"[ $start = 1 ] && exit 0\ntrap 'exit 75' USR1\n{WAITS}"
    venv = make_stand_in(folder / "venv", behaviour)
    return submit(cluster, "gpu1,gpu2", folder / "log", venv, [], "--time=1", "--signal=USR1@55"), folder / "log"


OF_A_RUN = ("checkpoint.every=10", "run.seed=3")


def submit_training(cluster: Cluster, overrides: list[str], folder: Path) -> str:
    """Returns the number of a job that trains on both nodes without GPUs, one rank each."""
    own = [*OF_A_RUN, f"run.folder={folder}", f"steps={STEPS}"]
    return submit(cluster, "node1,node2", folder.with_suffix(".log"), Path(sys.prefix), [*overrides, *own])


def losses_of_a_run(ranks: Distributed, overrides: list[str], folder: Path) -> list[float]:
    """Of each step of a run that nobody disturbed."""
    return [row["train/loss"] for row in train(ranks, overrides, folder, STEPS)[1][1:]]


def rows(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# Requested here so that it waits for its time limit while others train.
@pytest.mark.slow
@pytest.mark.usefixtures("job_near_its_time_limit")
def test_two_nodes_train_and_requeued_go_on_where_they_stopped(
    cluster: Cluster, tiny_diffusion: list[str], tmp_path: Path, on_ranks: OnRanks
) -> None:
    """To the last step, and as a run that nobody disturbed."""
    folder = tmp_path / "interrupted"
    job = submit_training(cluster, tiny_diffusion, folder)
    wait_for((folder / "checkpoints" / "step-00000010" / "manifest.json").exists, 180)
    cluster.client("scancel", "--signal=USR1", job)  # reaches the ranks the way the time limit's warning does
    ended = cluster.wait_for_end(job, 180)
    log = folder.with_suffix(".log").read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), log
    found = re.search(r"going on from step (\d+)", log)
    assert found is not None, log
    assert 10 <= int(found[1]) < STEPS
    assert [row["step"] for row in rows(folder)] == list(range(STEPS + 1))
    checkpoint = folder / "checkpoints" / f"step-{STEPS:08d}"
    assert json.loads((checkpoint / "manifest.json").read_text())["world"] == 2
    assert (folder / "report.html").exists()
    straight = on_ranks(2, losses_of_a_run, [*tiny_diffusion, *OF_A_RUN], tmp_path / "straight")
    assert [row["train/loss"] for row in rows(folder)[1:]] == straight


@pytest.mark.slow
def test_time_limit_sends_the_job_back_to_the_queue(
    cluster: Cluster, job_near_its_time_limit: tuple[str, Path]
) -> None:
    job, log = job_near_its_time_limit
    ended = cluster.wait_for_end(job, 90)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    assert re.findall(r"start \d", log.read_text()) == ["start 1", "start 2"]
