"""slurm/evaluate.sbatch and slurm/prepare.sbatch by hand on real daemons: who is started, with what."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.slurm.cluster import Cluster, wait_for
from tests.slurm.test_train_sbatch import WAITS, make_stand_in


def submit(cluster: Cluster, script: str, venv: Path, *words: str) -> str:
    """words: sbatch's options, then the script's arguments."""
    options = [word for word in words if word.startswith("--")]
    arguments = [word for word in words if not word.startswith("--")]
    command = ["sbatch", "--parsable", f"--output={venv}.log", *options, f"slurm/{script}.sbatch", *arguments]
    return cluster.client(*command, environment={"LDM_VENV": str(venv), "OMP_NUM_THREADS": "1"}, cwd=PROJECT)


def arguments(venv: Path) -> dict[str, list[str]]:
    """Of every task, by its file's name."""
    return {path.stem: path.read_text().splitlines() for path in (venv / "bin").glob("*.arguments")}


def test_every_gpu_evaluates(cluster: Cluster, tmp_path: Path) -> None:
    venv = make_stand_in(tmp_path / "venv", "exit 3")
    job = submit(cluster, "evaluate", venv, "--nodelist=gpu1", "run=runs/first", "protocol=openmoji")
    ended = cluster.wait_for_end(job, 30)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "3:0")
    given = ["evaluate", "run=runs/first", "protocol=openmoji"]
    assert arguments(venv) == {"start0-task0": given, "start0-task1": given}


@pytest.mark.slow
def test_an_evaluation_that_comes_to_its_time_limit_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    venv = make_stand_in(tmp_path / "venv", f"[ $start = 1 ] && exit 0\n{WAITS}")
    job = submit(cluster, "evaluate", venv, "--nodelist=node1", "run=runs/first")
    wait_for((venv / "bin" / "start0-task0.env").exists, 30)
    cluster.client("scancel", "--batch", "--signal=USR1", job)
    ended = cluster.wait_for_end(job, 60)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")


def test_an_array_s_tasks_share_latents(cluster: Cluster, tmp_path: Path) -> None:
    behaviour = 'cp "$here/start$start-task$SLURM_PROCID.arguments" "$here/share$SLURM_ARRAY_TASK_ID-$SLURM_PROCID"'
    venv = make_stand_in(tmp_path / "venv", behaviour)
    array = submit(cluster, "prepare", venv, "--nodelist=gpu1", "--array=3-4", "latents", "experiment=demo")
    for task, share in ((3, 1), (4, 0)):
        assert cluster.wait_for_end(f"{array}_{task}", 60)["JobState"] == "COMPLETED"
        for rank in range(2):
            given = (venv / "bin" / f"share{task}-{rank}").read_text().splitlines()
            assert given == ["prepare", "latents", "experiment=demo", f"share.number={share}", "share.of=2"]


@pytest.mark.parametrize(
    ("tasks", "given", "shares"),
    [
        (range(4), [], ["0 of 4", "1 of 4", "2 of 4", "3 of 4"]),
        (range(1, 5), [], ["1 of 4", "2 of 4", "3 of 4", "0 of 4"]),
        ([2], [], ["0 of 1"]),
        ([2, 4], ["share.of=4"], ["2 of 4", "0 of 4"]),  # tasks that run again have the shares that they had
        ([2], ["share.of=4", "share.number=1"], ["1 of 4"]),
    ],
)
def test_shares_of_arrays_that_begin_anywhere(
    tmp_path: Path, tasks: Sequence[int], given: list[str], shares: list[str]
) -> None:
    assert [shares_of(tmp_path, task, tasks, given) for task in tasks] == shares


def test_an_array_with_gaps_has_to_say_how_many_shares_there_are(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as ended:
        shares_of(tmp_path, 1, [1, 5, 7], [])
    assert ended.value.returncode == 2 and "share.of=" in ended.value.stderr


def shares_of(folder: Path, task: int, tasks: Sequence[int], given: list[str]) -> str:
    """What the script gives a task of an array, without a cluster."""
    (folder / "slurm").mkdir(exist_ok=True)
    stand_in = 'find_ldm() { :; }; place_ranks() { :; }; on_every_rank() { shift; printf "%s\\n" "$@"; }\n'
    (folder / "slurm/ranks.sh").write_text(stand_in)
    array = {"ID": task, "MIN": min(tasks), "MAX": max(tasks), "COUNT": len(tasks)}
    environment = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in array.items()}
    command = ["bash", str(PROJECT / "slurm/prepare.sbatch"), "url=a b", *given]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    first, *others = done.stdout.splitlines()
    share = dict(word.split("=") for word in others)
    assert first == "url=a b" and len(share) == len(others) == 2
    return f"{share['share.number']} of {share['share.of']}"


def test_other_preparations_are_one_process(cluster: Cluster, tmp_path: Path) -> None:
    venv = make_stand_in(tmp_path / "venv", "exit 0")
    job = submit(cluster, "prepare", venv, "--nodelist=gpu1", "index", "url=s3://bucket/x")
    assert cluster.wait_for_end(job, 30)["JobState"] == "COMPLETED"
    assert arguments(venv) == {"start0-task0": ["prepare", "index", "url=s3://bucket/x"]}
