"""What tests of training share: groups of ranks, and a disk that is soon full."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training.ranks import RankGroup, Work

OnRanks = Callable[..., Any]


@pytest.fixture(scope="session")
def on_ranks() -> Iterator[OnRanks]:
    """on_ranks(world, work, *arguments): what `work(ranks, *arguments)` returned on rank 0 of a group of that size."""
    groups: dict[int, RankGroup] = {}

    def run(world: int, work: Work, *arguments: Any) -> Any:
        group = groups.pop(world, None) or RankGroup(world)
        result = group.run(work, *arguments)
        groups[world] = group  # not after a failure, which ends it
        return result

    yield run
    for group in groups.values():
        group.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
