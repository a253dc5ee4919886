"""Configurations compose, and the command line answers quickly."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from tests.conftest import PROJECT
from tests.training.runs import composed
from training.modules import parameter_shapes

EXPERIMENTS = sorted(path.stem for path in (PROJECT / "conf" / "experiment").glob("*.yaml"))


def run(*command: str) -> tuple[subprocess.CompletedProcess[str], float]:
    started = time.monotonic()
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    return done, time.monotonic() - started


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
    # The fastest of three: the law is about our imports, not about what else the machine is doing.
    results = [run(sys.executable, "-m", "training.cli", *arguments) for _ in range(3)]
    assert all(done.returncode == 0 and "ldm" in done.stdout for done, _ in results), results[0][0].stderr
    assert min(seconds for _, seconds in results) < 2.0


def test_module_and_command_do_the_same() -> None:
    overrides = ["experiment=txt2img_1p45b", "--cfg", "job"]
    command, _ = run(sys.executable, "-m", "training.cli", "train", *overrides)
    module, _ = run(sys.executable, "-m", "training.train", *overrides)
    assert command.returncode == module.returncode == 0
    assert command.stdout == module.stdout
    assert "channels: 320" in command.stdout


def test_the_installed_command_is_this_one() -> None:
    script = Path(sys.executable).with_name("ldm")
    done, _ = run(str(script), "--help")
    assert done.returncode == 0
    for verb in ("train", "sample", "evaluate", "prepare"):
        assert verb in done.stdout
