"""Every `ldm ...` that README.md, docs/ and the batch scripts print is one that can be typed."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from slurm.command import parse
from slurm.profile import profile_of
from tests.conftest import PROJECT
from training import cli, compose
from training.checks import check_settings

PAGES = (PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md")), *sorted((PROJECT / "slurm").glob("*.sbatch")))
IN_CODE = re.compile(r"``?(ldm [^`]+)``?")
A_LINE = re.compile(r"^(?:#   )?(ldm .*|sbatch .*train\.sbatch .*)$", re.MULTILINE)
OPEN = "..."
FLAGS = ("--cfg", "job", "--help", "--dry-run")


def printed() -> list[str]:
    """Commands, each once. What a reader is to choose is "..." or a word in capitals."""
    found: dict[str, None] = {}
    for page in PAGES:
        text = re.sub(r"\s*\\\n#?\s*", " ", page.read_text())
        for command in (*IN_CODE.findall(text), *A_LINE.findall(text)):
            command = re.sub(r"^sbatch --nodes=(\d+) \S+", r"ldm submit cluster=h100 cluster.nodes=\1", command)
            if "=" in command:
                found[command.removeprefix("ldm ")] = None
    return list(found)


def completed(command: str) -> list[str]:
    """The arguments, with values in the place of those that a reader is to choose."""
    for key, value in {"experiment": "demo", "protocol": "openmoji", "source": "coco"}.items():
        command = re.sub(rf"\b{key}=(NAME|\.\.\.)", f"{key}={value}", command)
    words = [word for word in shlex.split(command) if not word.endswith(OPEN)]
    needs_one = words[0] == "train" and not any(word.startswith(("experiment=", "replay=")) for word in words)
    return [*(word for word in words if word not in FLAGS), *(["experiment=demo"] if needs_one else [])]


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """composed(*arguments): what `ldm` composes, by the command's own entry point, which then runs nothing."""

    def run(*arguments: str) -> DictConfig:
        found: list[DictConfig] = []
        monkeypatch.setattr(compose.hydra, "main", lambda *_, **__: lambda run: found.append)
        monkeypatch.setattr(sys, "argv", ["ldm", *arguments])
        cli.main()
        return found[0]

    return run


@pytest.mark.parametrize("command", printed())
def test_it_can_be_typed(command: str, composed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings are read, and what trains is checked as far as it is without data and weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vgg16.pth").touch()
    arguments = completed(command)
    verb, ranks, config = arguments[0], None, composed(*arguments)
    if verb == "submit":
        submitted = parse(arguments[1:])
        verb, ranks = submitted.verb, profile_of(config).ranks
        config = composed(*submitted.verb.split(), *submitted.overrides)
    if verb != "train" or "replay=" in command or any(word.endswith(OPEN) or word in FLAGS for word in command.split()):
        return
    check_settings(config, ranks or config.run.ranks or 1)
    assert not weights_left_out(config)


def weights_left_out(config: DictConfig) -> list[str]:
    """Frozen parts whose weights no setting names."""
    if config.task.name == "autoencoder":
        return []
    frozen = [f"frozen_weights.{name}" for name in config.frozen_conditioners if not config.frozen_weights.get(name)]
    has_some = not config.first_stage.autoencoder._target_.endswith("IdentityAutoencoder")
    return [*frozen, *(["first_stage.weights"] if has_some and config.first_stage.weights is None else [])]


def test_pages_name_files_and_benchmarks_that_are_there() -> None:
    named = set()
    for page in (*PAGES, PROJECT / "ARCHITECTURE.md"):
        text = page.read_text()
        named |= set(re.findall(r"\btests/[\w/]+\.py\b", text))
        named |= {f"{module.replace('.', '/')}.py" for module in re.findall(r"python -m (tests[\w.]+)", text)}
        named |= {link for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text) if page.parent == PROJECT}
    assert len(named) > 30
    assert not [name for name in sorted(named) if not (PROJECT / name).exists()]
