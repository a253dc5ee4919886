"""The pre-flight on real daemons: a bad node is named, and the run starts on others."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.slurm.cluster import Cluster
from tests.slurm.test_train_sbatch import SCRIPT

VENV = """#!/bin/sh
# `ldm` whose pre-flight is real, and whose training is over at once.
[ "$1" = preflight ] && exec {python} -m training.cli "$@"
hostname >> "$(dirname "$0")/trained_on"
"""


def submit(cluster: Cluster, folder: Path, overrides: list[str], *options: str) -> str:
    """A job with the pre-flight, by hand."""
    program = folder / "venv" / "bin" / "ldm"
    program.parent.mkdir(parents=True)
    program.write_text(VENV.format(python=sys.executable))
    program.chmod(0o755)
    environment = {"LDM_VENV": str(folder / "venv"), "LDM_PREFLIGHT": "on", "PYTHONPATH": str(PROJECT)}
    own = [
        "--parsable",
        "--nodes=2",
        f"--output={folder}/log",
        *options,
        SCRIPT,
        *overrides,
        f"run.folder={folder}/run",
    ]
    return cluster.client("sbatch", *own, environment=environment | {"OMP_NUM_THREADS": "1"}, cwd=PROJECT)


@pytest.mark.slow
def test_a_bad_node_is_left_for_others(cluster: Cluster, tiny_diffusion: list[str], tmp_path: Path) -> None:
    """node2 has hardly any shared memory."""
    cluster.on_node("node2", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/dev/shm")
    try:
        job = submit(cluster, tmp_path, tiny_diffusion, "--exclude=gpu1,gpu2")
        ended = cluster.wait_for_end(job, 240)
    finally:
        cluster.on_node("node2", "umount", "/dev/shm")
    log = (tmp_path / "log").read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), log
    assert "pre-flight: node2 is bad: /dev/shm: 0.001 GB are free, 1 GB are asked for" in log
    assert (tmp_path / "log-ranks" / "excluded_nodes").read_text() == "node2\n"
    assert ended["ExcNodeList"] == "gpu[1-2],node2"
    assert sorted((tmp_path / "venv" / "bin" / "trained_on").read_text().split()) == ["node1", "node3"]
    [first, second] = json.loads((tmp_path / "log-ranks" / "preflight.json").read_text())["findings"]
    assert {first["node"], second["node"]} == {"node1", "node3"} and not first["problems"] | second["problems"]


@pytest.mark.slow
def test_what_is_not_the_nodes_fault_ends_the_job(cluster: Cluster, tiny_diffusion: list[str], tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, [*tiny_diffusion, "data.url=/nowhere"], "--nodelist=node1,node2")
    ended = cluster.wait_for_end(job, 180)
    log = (tmp_path / "log").read_text()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0"), log
    assert "no other nodes would help: store: " in log and "and so on all 2 nodes" in log
    assert not (tmp_path / "venv" / "bin" / "trained_on").exists()
