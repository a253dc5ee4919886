import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty import WebServer
from made_files import make_shard

from data.errors import DataError, Refused, StoreUnavailable
from data.index import Index, left_out
from data.indexing import build_index
from data.store import EmbeddedStore
from data.stream import Storage
from data.where import Where


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


@pytest.mark.parametrize("web", [False, True])
def test_a_shard_written_anew_with_as_many_bytes_is_read_again(
    web: bool, shards: Callable[..., str], tmp_path: Path
) -> None:
    """What others' indexes list of the old one stays: by it the change is told when they read the shard."""
    folder, place = shards(3, 2), str(tmp_path / "index")
    with WebServer(folder, True) as server:  # which tells neither an ETag nor a time
        urls = f"{server.url}/{{00000..00001}}.tar" if web else folder
        before = {path.name: path.read_bytes() for path in Path(build_index(urls, place, Storage())).parent.iterdir()}
        shard = Path(folder, "00001.tar")
        assert shard.stat().st_size == shard.write_bytes(make_shard(8, 2)), "tars are filled up to 10,240 bytes"
        index = Index.load(build_index(urls, place, Counting()), Storage())
        assert [entry.key for _, entry in entries(index)][3:] == ["000008", "000009"]  # type: ignore[misc]
        assert len(Counting.opened) == 1 and Counting.opened[0].endswith("00001.tar")
    assert all(Path(place, name).read_bytes() == data for name, data in before.items() if name != "index.json")


def test_names_are_true_from_anywhere(
    shards: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shards(3)
    monkeypatch.chdir(tmp_path)
    build_index(Path(folder).name, "index", Storage())
    monkeypatch.chdir("/")
    assert Index.load(str(tmp_path / "index"), Storage()).sample(0)[0] == f"{folder}/00000.tar"


def test_urls_with_a_query(shards: Callable[..., str], tmp_path: Path) -> None:
    folder = shards(3, 2)
    with WebServer(folder, True) as server:
        where = Where({"key": {"at_least": 1}})
        urls = f"{server.url}/{{00000..00001}}.tar?download=true"
        index = Index.load(build_index(urls, str(tmp_path / "index"), Storage(), where), Storage())
        assert index.shard_sizes == [2, 2]
        assert {url for url, _ in entries(index)} == {urls.replace("{00000..00001}", f"0000{n}") for n in (0, 1)}  # type: ignore[misc]
    assert not [path for path in (tmp_path / "index").iterdir() if "?" in path.name]


@pytest.mark.parametrize(("status", "kind"), [(503, StoreUnavailable), (403, Refused)])
def test_a_store_that_fails_or_refuses_ends_the_build_and_leaves_nothing_out(
    status: int, kind: type[DataError], shards: Callable[..., str], tmp_path: Path
) -> None:
    folder, place = shards(3, 2, 4), str(tmp_path / "index")
    with WebServer(folder, True) as server:
        urls, storage = f"{server.url}/{{00000..00002}}.tar", Storage(patience_seconds=0)
        server.statuses["/00001.tar"] = status
        for make in (lambda: build_index(urls, place, storage), lambda: Index.load(urls, storage)):
            with pytest.raises(kind, match=r"/00001\.tar"):
                make()
        assert not Path(place, "index.json").exists()
        server.statuses.clear()
        assert Index.load(build_index(urls, place, storage), storage).shard_sizes == [3, 2, 4]


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
    size = storage.size(f"{url}/00001.tar")
    storage.write(f"{url}/00001.tar", make_shard(8, 2))
    assert storage.size(f"{url}/00001.tar") == size
    build_index(storage.check(url), url, storage, checksums=True)
    assert [entry.key for _, entry in entries(Index.load(url, storage))][3:] == ["000008", "000009"]  # type: ignore[misc]


def test_shards_that_cannot_be_read(
    shards: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    folder = shards(3, 2)
    Path(folder, "00000.tar").write_bytes(b"no tar")
    urls = f"{folder}/{{00000..00002}}.tar"
    built = build_index(urls, str(tmp_path / "x"), Storage())
    assert Index.load(built, Storage()).shard_sizes == [2]
    assert "shard left out" in caplog.text and "00000.tar" in caplog.text
    copied = build_index(built, str(tmp_path / "copy"), Storage())
    for index_url in (built, copied, str(tmp_path / "copy")):
        bad = left_out(index_url, Storage())
        assert list(bad) == [f"{folder}/00000.tar", f"{folder}/00002.tar"]
        assert "is no readable tar" in bad[f"{folder}/00000.tar"] and "does not exist" in bad[f"{folder}/00002.tar"]
    with pytest.raises(DataError, match=r"00000\.tar is no readable tar"):
        build_index(folder, str(tmp_path / "y"), Storage(), replace_bad_shards=False)
