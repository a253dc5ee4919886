"""The direction of imports, and the few places where a heavy or dangerous thing may be used."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PACKAGES = ("training", "data", "models", "evaluation", "slurm")
LEAVES: dict[str, set[str]] = {
    "training.distributed": set(),
    "training.checkpoint_files": set(),
    "training.checkpoint_store": {"data", "training.checkpoint_files"},
    "training.closed_pipe": set(),
    "training.compose": {"training.closed_pipe", "training.credentials"},
    "training.credentials": set(),
    "training.starts": {"training.credentials"},
}
"""Modules of training that evaluation may use, and all of this project that they import, which is no evaluation."""
ALLOWED = {
    "models": {"models"},
    "data": {"data"},
    "evaluation": {"evaluation", "models", "data"},
    "training": {"training", "evaluation", "models", "data"},
    "slurm": {"slurm", "training", "evaluation", "models", "data"},
}


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((PROJECT / package).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] in PACKAGES}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PROJECT)))
def test_arrows_point_one_way(path: Path) -> None:
    package = path.relative_to(PROJECT).parts[0]
    wrong = {
        name
        for name in ours(path)
        if name.split(".")[0] not in ALLOWED[package]
        and not (package == "evaluation" and (name == "training" or ".".join(name.split(".")[:2]) in LEAVES))
    }
    assert not wrong, f"{path.name} imports {sorted(wrong)}"


@pytest.mark.parametrize("leaf", sorted(LEAVES))
def test_leaves_import_nothing_else_of_ours(leaf: str) -> None:
    for name in ours(PROJECT / (leaf.replace(".", "/") + ".py")):
        parts = name.split(".")
        assert {parts[0], ".".join(parts[:2])} & LEAVES[leaf], name


def test_one_file_imports_deepspeed() -> None:
    users = [path.name for path in sources() if any(name.split(".")[0] == "deepspeed" for name in imports(path))]
    assert users == ["engine.py"]


def test_nothing_executes_what_it_reads() -> None:
    for path in sources():
        tree = ast.parse(path.read_text())
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        for call in calls:
            name = ast.unparse(call.func)
            assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load"), f"{path}: {name}"
            if name == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords), path


def test_every_file_is_of_readable_length() -> None:
    long = {str(p.relative_to(PROJECT)): n for p in sources() if (n := len(p.read_text().splitlines())) > 320}
    assert not long
