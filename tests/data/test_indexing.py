import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from data.errors import DataError
from data.index import Index
from data.indexing import build_index
from data.store import EmbeddedStore
from data.stream import Storage


class Counting(Storage):
    """Remembers which shards were opened."""

    opened: list[str] = []  # noqa: RUF012

    def open(self, url: str):  # type: ignore[no-untyped-def]
        self.opened.append(url)
        return super().open(url)


@pytest.fixture(autouse=True)
def nothing_opened() -> None:
    Counting.opened = []


def entries(index: Index) -> list[object]:
    return [index.sample(position) for position in range(len(index))]


def test_an_index_says_what_the_headers_say(shards: Callable[..., str], tmp_path: Path) -> None:
    folder, storage = shards(3, 0, 2), Storage()
    bare = entries(Index.load(folder, storage))
    built = Index.load(build_index(folder, str(tmp_path / "index"), storage), Counting())
    assert entries(built) == bare
    assert Counting.opened == [], "offsets are read from the index, not from the shards"
    assert built.shard_sizes == [3, 0, 2]


def test_beside_the_shards_names_stay_true_when_both_are_moved(shards: Callable[..., str], tmp_path: Path) -> None:
    folder = Path(shards(3, 2))
    build_index(str(folder), str(folder), Storage())
    moved = folder.rename(tmp_path / "moved")
    index = Index.load(str(moved), Counting())
    assert [url for url, _ in entries(index)] == [str(moved / f"0000{n}.tar") for n in (0, 0, 0, 1, 1)]  # type: ignore[misc]
    assert Counting.opened == []


def test_a_build_that_was_cut_short_goes_on(
    shards: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, place = shards(3, 2, 4, 1), str(tmp_path / "index")
    write = Storage.write

    def dying(self: Storage, url: str, data: bytes) -> None:
        if "00002" in url and url.endswith(".json"):
            raise KeyboardInterrupt
        write(self, url, data)

    monkeypatch.setattr(Storage, "write", dying)
    with pytest.raises(KeyboardInterrupt):
        build_index(folder, place, Counting())
    monkeypatch.undo()
    assert not Path(place, "index.json").exists()
    assert len(Counting.opened) == 3
    Counting.opened.clear()
    index = Index.load(build_index(folder, place, Counting()), Storage())
    assert Counting.opened == [f"{folder}/0000{n}.tar" for n in (2, 3)]
    assert index.shard_sizes == [3, 2, 4, 1]


def test_a_shard_that_grew_is_read_again(shards: Callable[..., str], tmp_path: Path) -> None:
    folder, place = shards(3, 2), str(tmp_path / "index")
    build_index(folder, place, Storage())
    larger = shards(5, name="larger")
    Path(folder, "00001.tar").write_bytes(Path(larger, "00000.tar").read_bytes())
    index = Index.load(build_index(folder, place, Counting()), Storage())
    assert Counting.opened == [f"{folder}/00001.tar"] and index.shard_sizes == [3, 5]


def test_several_processes_make_the_same_index(shards: Callable[..., str], tmp_path: Path) -> None:
    folder = shards(*[2] * 9)
    one, two = (build_index(folder, str(tmp_path / f"{n}"), Storage(), processes=n) for n in (1, 2))
    assert entries(Index.load(one, Storage())) == entries(Index.load(two, Storage()))


def test_of_a_store(shards: Callable[..., str], store: EmbeddedStore) -> None:
    folder, url, storage = shards(3, 2), f"{store.url}/indexing", Storage(block_bytes=512)
    for name in ("00000.tar", "00001.tar"):
        storage.write(f"{url}/{name}", Path(folder, name).read_bytes())
    build_index(url, url, storage, checksums=True)
    local = [entry for _, entry in entries(Index.load(build_index(folder, folder, storage, checksums=True), storage))]  # type: ignore[misc]
    assert [entry for _, entry in entries(Index.load(url, storage))] == local  # type: ignore[misc]
    assert all(member.crc32 is not None for entry in local for member in entry.members.values())


def test_shards_that_cannot_be_read(
    shards: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    folder = shards(3, 2)
    Path(folder, "00000.tar").write_bytes(b"no tar")
    index = Index.load(build_index(folder, str(tmp_path / "x"), Storage()), Storage())
    assert index.shard_sizes == [2]
    assert "shard left out" in caplog.text and "00000.tar" in caplog.text
    with pytest.raises(DataError, match=r"00000\.tar is no readable tar"):
        build_index(folder, str(tmp_path / "y"), Storage(), replace_bad_shards=False)
