"""Configurations compose, and the command line answers quickly."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from tests.conftest import PROJECT
from tests.training.runs import composed
from training.modules import parameter_shapes

EXPERIMENTS = sorted(path.stem for path in (PROJECT / "conf" / "experiment").glob("*.yaml"))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)


def count(shapes: dict[str, list[int]], prefix: str) -> int:
    import math

    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(prefix))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_composes_and_builds_on_the_meta_device(experiment: str) -> None:
    assert parameter_shapes(composed([f"experiment={experiment}"]))["model"]


def test_the_paper_s_model_has_its_parameter_counts() -> None:
    config = composed(["experiment=txt2img_1p45b"])
    shapes = parameter_shapes(config)["model"]
    assert count(shapes, "unet.") == 872_300_484
    assert count(shapes, "conditioners.") == 542_895_360
    published = composed(["experiment=first_stage_kl_f8"])
    assert count(parameter_shapes(published)["model"], "autoencoder.") == 83_653_863
    with torch.device("meta"):
        ours, theirs = instantiate(config.first_stage.autoencoder), instantiate(published.model)
    assert [(n, p.shape) for n, p in ours.named_parameters()] == [(n, p.shape) for n, p in theirs.named_parameters()]


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["evaluate", "--help"], ["prepare", "--help"]])
def test_help_answers_within_two_seconds(arguments: list[str]) -> None:
    # Of processor time, as other tests run beside this one: the law is about our imports, and they wait for nothing.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run(sys.executable, "-m", "training.cli", *arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and "ldm" in done.stdout, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0


def test_help_lists_the_experiments_alone() -> None:
    help_text = run(sys.executable, "-m", "training.cli", "train", "--help").stdout
    [listed] = [part for part in help_text.split("\n\n") if part.startswith("Experiments:")]
    assert re.findall(r"\w+", listed.removeprefix("Experiments:")) == EXPERIMENTS


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["train", "experiment=demo", "--cfg", "job"], ["doctor", "run=."]]
)
def test_a_command_whose_reader_is_gone_ends_quietly(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-u", "-m", "training.cli", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 141


def test_module_and_command_do_the_same() -> None:
    overrides = ["experiment=txt2img_1p45b", "--cfg", "job"]
    command = run(sys.executable, "-m", "training.cli", "train", *overrides)
    module = run(sys.executable, "-m", "training.train", *overrides)
    assert command.returncode == module.returncode == 0
    assert command.stdout == module.stdout
    assert "channels: 320" in command.stdout


def test_the_installed_command_is_this_one() -> None:
    script = Path(sys.executable).with_name("ldm")
    done = run(str(script), "--help")
    assert done.returncode == 0
    for verb in ("train", "sample", "evaluate", "prepare"):
        assert verb in done.stdout
