"""Shards made on the spot."""

from collections.abc import Callable
from pathlib import Path

import pytest
from made_files import make_shard


@pytest.fixture
def shards(tmp_path: Path) -> Callable[..., str]:
    """Writes good shards of the given sizes to a folder and returns its path."""

    def write(*sizes: int, name: str = "shards") -> str:
        folder = tmp_path / name
        folder.mkdir()
        first = 0
        for number, size in enumerate(sizes):
            (folder / f"{number:05d}.tar").write_bytes(make_shard(first, size))
            first += size
        return str(folder)

    return write
