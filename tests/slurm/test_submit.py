"""`ldm submit` on real daemons: what arrives in the queue, what follows what, and every error before anything does."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from slurm.submit import main
from tests.conftest import PROJECT
from tests.slurm.cluster import Cluster, wait_for
from tests.slurm.test_train_sbatch import WAITS, make_stand_in
from training.launch import hold_run_folder

ON_NODES = ["cluster=cpu", "cluster.nodes=2", "cluster.memory=1G", "cluster.cpus_per_node=1"]


class Submit:
    """Runs `ldm submit` in this process, which has loaded torch already; returns what it prints."""

    def __init__(self, cluster: Cluster, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capsys = patch, capsys
        patch.chdir(PROJECT)
        for name, value in {**cluster.commands(), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}.items():
            patch.setenv(name, value)

    def __call__(self, *arguments: str, venv: Path | None = None, preflight: bool = False) -> str:
        self._patch.setenv("LDM_VENV", str(venv or sys.prefix))
        self._patch.setenv("LDM_PREFLIGHT", "on" if preflight else "off")
        self._patch.setattr(sys, "argv", ["ldm submit", *arguments])
        self._capsys.readouterr()
        main()
        return self._capsys.readouterr().out

    def refused(self, *arguments: str) -> str:
        """The one line that a wrong submission ends with."""
        with pytest.raises(SystemExit) as caught:
            self(*arguments)
        out, err = self._capsys.readouterr()
        assert (caught.value.code, out) == (2, ""), err
        [line] = err.splitlines()
        assert line.startswith("error: ")
        return str(line)


@pytest.fixture
def submit(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Submit:
    return Submit(cluster, monkeypatch, capsys)


def numbers(printed: str) -> list[str]:
    """Of the jobs that were submitted, in their order."""
    return re.findall(r"^job (\d+):", printed, re.MULTILINE)


def jobs(cluster: Cluster) -> set[str]:
    """That wait or run."""
    return set(cluster.client("squeue", "--noheader", "--format=%i").split())


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_nodes_train_then_the_run_is_evaluated(
    cluster: Cluster, submit: Submit, tiny_diffusion: list[str], tmp_path: Path
) -> None:
    """With the pre-flight before."""
    folder = tmp_path / "run"
    own = [f"run.folder={folder}", "steps=4", "checkpoint.every=2", "engine.precision=fp32"]
    measure = (
        "evaluate protocol.captions=4 protocol.splits=2 protocol.sampler_steps=1 protocol.image_size=32 batch_size=2"
    )
    printed = submit(
        *(*tiny_diffusion, *own, *ON_NODES, "cluster.preflight.free_disk_gigabytes=0.01"),
        f'then=["{measure} data.workers=0 cluster.nodes=1"]',
        preflight=True,
    )
    train, evaluate = numbers(printed)
    log = folder / "slurm" / f"train-{train}.log"
    assert f"log        {log}" in printed and f"{folder}/report.html" in printed
    assert cluster.job(evaluate)["Dependency"].startswith(f"afterok:{train}")
    assert cluster.wait_for_end(train, 180)["JobState"] == "COMPLETED", log.read_text()
    assert re.search(r"pre-flight: \w+: .*store \d+ MB/s, clock \+?-?\d+ ms, all-reduce [\d.]+ GB/s", log.read_text())
    assert [row["step"] for row in rows(folder)] == list(range(5))
    assert (folder / "slurm" / f"train-{train}.sbatch").exists()
    first, second = (log.with_name(f"train-{train}-ranks") / f"rank-{rank}.log" for rank in (0, 1))
    assert set(first.read_text().splitlines()) <= set(log.read_text().splitlines())
    assert first.read_text() and second.exists()
    ended = cluster.wait_for_end(evaluate, 120)
    assert ended["JobState"] == "COMPLETED", (folder / "slurm" / f"evaluate-{evaluate}.log").read_text()
    assert list((folder / "evaluation").glob("*-step00000004.json"))


def test_what_follows_a_failure_goes_with_it(
    cluster: Cluster, submit: Submit, tiny_diffusion: list[str], tmp_path: Path
) -> None:
    stand_in = make_stand_in(tmp_path / "venv", "exit 2")
    own = [f"run.folder={tmp_path}/run", *ON_NODES]
    train, evaluate = numbers(submit(*tiny_diffusion, *own, 'then=["evaluate protocol=openmoji"]', venv=stand_in))
    assert cluster.wait_for_end(train, 30)["JobState"] == "FAILED"
    assert cluster.wait_for_end(evaluate, 30)["JobState"] == "CANCELLED"


@pytest.mark.slow
def test_a_grid_is_an_array_of_runs(
    cluster: Cluster, submit: Submit, tiny_diffusion: list[str], tmp_path: Path
) -> None:
    stand_in = make_stand_in(
        tmp_path / "venv", 'cp "$here/start$start-task$SLURM_PROCID.arguments" "$here/$SLURM_ARRAY_TASK_ID"'
    )
    grid = "grid={learning_rate.base:[1e-4,2e-4],run.seed:[1]}"
    printed = submit(
        *tiny_diffusion, f"run.folder={tmp_path}/run", *ON_NODES, "cluster.nodes=1", grid, "at_once=1", venv=stand_in
    )
    [array] = numbers(printed)
    for number in range(2):
        assert cluster.wait_for_end(f"{array}_{number}", 60)["JobState"] == "COMPLETED"
    for number, rate in enumerate(("0.0001", "0.0002")):
        arguments = (stand_in / "bin" / str(number)).read_text().splitlines()
        assert {f"learning_rate.base={rate}", "run.seed=1", f"run.folder={tmp_path}/run-{number}"} <= set(arguments)
        assert (tmp_path / f"run-{number}" / "slurm" / "jobs.jsonl").exists()
        assert (tmp_path / "run" / "slurm" / f"train-{array}_{number}.log").exists()


@pytest.mark.slow
def test_an_array_prepares_latents_together(
    cluster: Cluster, submit: Submit, tiny_diffusion: list[str], tmp_path: Path
) -> None:
    latents = tmp_path / "latents"
    own = [f"run.folder={tmp_path}/run", f"data.latents={latents}", *ON_NODES, "cluster.nodes=1", "shares=2"]
    [array] = numbers(submit("prepare", "latents", *tiny_diffusion, *own))
    for number in range(2):
        ended = cluster.wait_for_end(f"{array}_{number}", 180)
        log = tmp_path / "run" / "slurm" / f"prepare_latents-{array}_{number}.log"
        assert ended["JobState"] == "COMPLETED", log.read_text()
    index = json.loads((latents / "index.json").read_text())
    assert sum(shard["nsamples"] for shard in index["shardlist"]) == 56


def test_errors_before_anything_is_submitted(
    cluster: Cluster, submit: Submit, tiny_diffusion: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame")
    run = [*tiny_diffusion, f"run.folder={tmp_path}/run", *ON_NODES]
    before = jobs(cluster)
    message = submit.refused(*run, "cluster.partition=nowhere")
    assert "cluster.partition=nowhere" in message and "lab, main" in message
    message = submit.refused(*run, "cluster.partition=lab")
    assert "cluster.account=null" in message and "sacctmgr" in message
    assert "cluster.nodes=40" in submit.refused(*run, "cluster.nodes=40", "batch.global_size=160")
    message = submit.refused(*run, "data.url=s3://bucket/x", "data.storage.endpoint_url=http://127.0.0.1:9")
    assert "data.train=s3://bucket/x/train" in message and "cannot be reached" in message
    with hold_run_folder(tmp_path / "run"):
        assert f"run.folder={tmp_path}/run: another live job holds this run" in submit.refused(*run)
    message = submit.refused(*run, "data.url=s3://key:sesame@host/x")
    assert "data.url=s3://***@host/x" in message and "sesame" not in message
    assert jobs(cluster) <= before


def test_a_run_has_one_job(cluster: Cluster, submit: Submit, tiny_diffusion: list[str], tmp_path: Path) -> None:
    stand_in = make_stand_in(tmp_path / "venv", WAITS)
    run = [*tiny_diffusion, f"run.folder={tmp_path}/run", *ON_NODES]
    [job] = numbers(submit(*run, 'cluster.sbatch_options=["--begin=now+1hour"]', venv=stand_in))
    message = submit.refused(*run)
    assert f"run.folder={tmp_path}/run" in message and f"{job} is PENDING" in message
    cluster.client("scancel", job)
    [job] = numbers(submit(*run, venv=stand_in))
    wait_for((stand_in / "bin" / "start0-task1.env").exists, 30)
    cluster.client("scancel", job)


def test_no_slurm_here(
    submit: Submit, tiny_diffusion: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    message = submit.refused(*tiny_diffusion, f"run.folder={tmp_path}/run", *ON_NODES)
    assert "no sbatch on this machine" in message and "--dry-run" in message
