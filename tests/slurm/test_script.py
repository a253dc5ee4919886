"""Commands become batch scripts: plain text, of one source with those that are used by hand."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.command import parse
from slurm.profile import profile_of
from slurm.script import FUNCTIONS, HERE, BatchJob, render
from training import compose
from training.errors import ConfigurationError

SCRIPTS = ("train", "evaluate", "prepare")


def job(script: str = "train", *overrides: str, **settings: object) -> BatchJob:
    profile = profile_of(compose.composed("submit", list(overrides)))
    arguments = [["experiment=demo", "run.name=two words", "data.url=s3://b/$x"]]
    given: dict[str, object] = {"arguments": arguments, "preflight": ["cluster=h100"], "mounts": [], **settings}
    return BatchJob(
        script=script,
        profile=profile,
        name="ldm-first",
        log=Path("/runs/first/slurm/train-%j.log"),
        folder=Path("/home/me/clone"),
        ldm=Path("/home/me/clone/.venv/bin/ldm"),
        typed="ldm submit ...",
        **given,  # type: ignore[arg-type]
    )


def options(text: str) -> dict[str, str]:
    """Of sbatch, as it reads them: before the first line that is no comment."""
    head = text.partition("\nset -u")[0]
    found = [shlex.split(line.removeprefix("#SBATCH "))[0] for line in head.splitlines() if line.startswith("#SBATCH ")]
    pairs = [option.removeprefix("--").partition("=")[::2] for option in found]
    assert len(dict(pairs)) == len(pairs), "an option is there twice"
    return dict(pairs)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_steps_are_those_of_the_script_for_the_hand(script: str) -> None:
    text = render(job(script))
    by_hand = (HERE / f"{script}.sbatch").read_text()
    for part in (by_hand.partition(FUNCTIONS)[2], (HERE / "ranks.sh").read_text().rstrip()):
        assert part in text
    assert FUNCTIONS not in text  # it doesn't depend on the clone
    for program in ([text], [by_hand]):
        assert subprocess.run(["bash", "-n", "/dev/stdin"], input=program[0], text=True).returncode == 0


@pytest.mark.parametrize("profile", compose.choices("cluster"))
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_profile_makes_a_script(profile: str, script: str) -> None:
    text = render(job(script, f"cluster={profile}", "cluster.nodes=3"))
    found = options(text)
    assert (found["nodes"], found["open-mode"], found["chdir"]) == ("3", "append", "/home/me/clone")
    assert found["output"] == "/runs/first/slurm/train-%j.log"
    assert ("gpus-per-node" in found) == (profile != "cpu")
    assert max(map(len, text.splitlines())) <= 140
    head = (compose.CONFIG_FOLDER / "cluster" / f"{profile}.yaml").read_text().splitlines()
    assert head[0].startswith("# ") and any(line.startswith("#   ldm submit ") for line in head[:6])


def test_what_a_profile_says_is_in_the_script() -> None:
    text = render(
        job(
            "train",
            *("cluster.partition=gpu", "cluster.account=lab", "cluster.qos=high", "cluster.time_limit=7-0"),
            *("cluster.signal_lead_seconds=900", "cluster.exclude=[n1,n2]", "cluster.memory=200G"),
            *("cluster.cpus_per_node=96", "cluster.modules=[cuda/12]", "cluster.scratch=/scratch/me"),
            *('cluster.sbatch_options=["--reservation=spring"]', "++cluster.environment.NCCL_DEBUG=INFO"),
        )
    )
    assert (
        options(text).items()
        >= {
            **dict(
                partition="gpu", account="lab", qos="high", time="7-0", signal="USR1@900", exclude="n1,n2", mem="200G"
            ),
            **{"ntasks-per-node": "8", "cpus-per-task": "12", "reservation": "spring", "exclusive": ""},
        }.items()
    )
    assert text.startswith("#!/bin/bash -l\n")  # which knows `module`
    for line in ("module load cuda/12", "export NCCL_DEBUG=INFO", "export TRITON_CACHE_DIR=/scratch/me/triton"):
        assert f"\n{line}\n" in text


def test_arguments_arrive_as_they_were_typed() -> None:
    text = render(job())
    found = re.search(r"^set -- (.*?)\n\n", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    shown = subprocess.run(["bash", "-c", f"{found[0]}\nprintf '%s|' \"$@\""], capture_output=True, text=True).stdout
    assert shown == "experiment=demo|run.name=two words|data.url=s3://b/$x|"


def test_an_array_has_a_list_of_arguments_for_each_task() -> None:
    text = render(job(arguments=[["a=1"], ["a=2 3"]], at_once=1))
    assert options(text)["array"] == "0-1%1"
    assert options(text)["output"] == "/runs/first/slurm/train-%A_%a.log"
    case = text[text.index("case $SLURM") : text.index("esac") + 4]
    for task, arguments in ((0, "a=1"), (1, "a=2 3")):
        script = f"SLURM_ARRAY_TASK_ID={task}\n{case}\nprintf '%s|' \"$@\""
        assert subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout == f"{arguments}|"


def test_containers(tmp_path: Path) -> None:
    image = tmp_path / "ldm.sif"
    image.write_text("")
    own = [f"cluster.container.image={image}", "cluster.container.mounts=[/data]"]
    inside = render(job("train", *own, "cluster.container.runtime=apptainer", mounts=[Path("/runs")]))
    assert f"ldm=(apptainer exec --nv --bind /runs:/runs,/data --pwd /home/me/clone {image} ldm)" in inside
    pyxis = render(job("train", *own, "cluster.container.runtime=pyxis", mounts=[Path("/runs")]))
    assert f"--container-image={image} --container-mounts=/runs:/runs,/data" in pyxis and "\nldm=(ldm)\n" in pyxis


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.nodes=0", "cluster.nodes=0: it must be a whole number of at least 1"),
        ("cluster.time_limit=soon", "cluster.time_limit=soon: sbatch reads minutes"),
        ("cluster.memory=much", "cluster.memory=much: sbatch reads a number"),
        ("cluster.gpu=h1000", "cluster.gpu=h1000: choose one of a100-40"),
        ("cluster.scratch=tmp", "cluster.scratch=tmp: give an absolute path"),
        ("cluster.container.runtime=docker", "cluster.container.runtime=docker: choose one of none, pyxis, apptainer"),
        ("cluster.container.runtime=pyxis", "cluster.container.image=null: name the image"),
        ("cluster.container.image=/no/x.sif", "cluster.container.image=/no/x.sif: there is no such file"),
        ("cluster.sbatch_options=[reservation]", "cluster.sbatch_options=reservation: give long options"),
        ("++cluster.environment.WANDB_API_KEY=sesame", "cluster.environment.WANDB_API_KEY=***: credentials don't"),
        ("++cluster.environment.PROXY='http://me:sesame@host'", "cluster.environment.PROXY=***: credentials don't"),
    ],
)
def test_a_profile_that_cannot_be(override: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        profile_of(compose.composed("submit", [override]))
    assert str(caught.value).startswith(message)
    assert "sesame" not in str(caught.value)


def test_verbs_and_settings_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    command = parse(["prepare", "latents", "cluster=h100", "experiment=demo", "shares=4", "cluster.environment.A=b"])
    assert command.verb == "prepare latents"
    assert command.overrides == ["experiment=demo"]
    assert command.own == ["cluster=h100", "shares=4", "++cluster.environment.A=b"]
    assert parse(["experiment=demo"]).verb == "train"
    for wrong in ("sample", "tarin"):
        with pytest.raises(SystemExit):
            parse([wrong, "experiment=demo"])
        assert "jobs run train, evaluate, prepare" in capsys.readouterr().err


def test_a_dry_run_prints_the_scripts_and_nothing_else(
    tiny_diffusion: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a machine without Slurm."""
    from slurm.submit import main

    monkeypatch.setenv("PATH", "/nowhere")
    cluster = ["cluster=h100", "cluster.nodes=2", "batch.global_size=16", "batch.micro_size=1"]
    command = [
        "--dry-run",
        *tiny_diffusion,
        f"run.folder={tmp_path}/run",
        *cluster,
        'then=["evaluate cluster.nodes=1"]',
    ]
    monkeypatch.setattr(sys, "argv", ["ldm submit", *command])
    main()
    out, err = capsys.readouterr()
    assert out.startswith("#!/bin/bash\n# Written by: ldm submit --dry-run ")
    assert out.count("#!/bin/bash") == 2 and f"run={tmp_path}/run" in out
    assert "2 x 8 NVIDIA H100" in err and "GPU-hours" in err
    assert not (tmp_path / "run").exists()
    wrong = [*command, "batch.global_size=24"]
    monkeypatch.setattr(sys, "argv", ["ldm submit", *wrong])
    with pytest.raises(SystemExit):
        main()
    assert "batch.global_size=24: not divisible by 16 ranks" in capsys.readouterr().err
