import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import webdataset
from made_files import make_png

from data.errors import DataError
from data.index import Index
from data.prepare import prepare
from data.sources import HELD_OUT, TRAIN, Sample
from data.store import EmbeddedStore
from data.stream import Storage


class Numbers:
    """Ten pictures, every fourth of them held out."""

    name = "numbers"
    attribution = "nobody, public domain"

    def __init__(self, keys: list[str] | None = None, fail_at: int | None = None) -> None:
        self.keys = keys or [f"{number:02d}" for number in range(10)]
        self.fail_at = fail_at
        self.settings: Mapping[str, object] = {"size": 8}
        self.dropped: Mapping[str, int] = {"no_name": 3}
        self.splits = (TRAIN, HELD_OUT)

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Sample]:
        for number, key in enumerate(self.keys):
            if number == self.fail_at:
                raise KeyboardInterrupt
            yield Sample(key, make_png(number), "png", f"number {number} ü", {"half": number / 2})

    def split(self, key: str) -> str:
        return TRAIN if int(key) % 4 else HELD_OUT


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_layout_and_manifest(tmp_path: Path) -> None:
    manifest = prepare(Numbers(), str(tmp_path), Storage(), 3)
    assert sorted(files(tmp_path)) == [
        *(f"heldout/{name}" for name in ("00000.offsets.npz", "00000.tar", "index.json")),
        "manifest.json",
        *(f"train/0000{n}.{kind}" for n in range(3) for kind in ("offsets.npz", "tar")),
        "train/index.json",
    ]
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest
    assert {name: split["samples"] for name, split in manifest["splits"].items()} == {
        "train": 7,
        "heldout": 3,
    }
    assert manifest["dropped"] == {"no_name": 3}
    assert manifest["attribution"] == "nobody, public domain"
    index = json.loads((tmp_path / "train/index.json").read_text())
    assert index["wids_version"] == 1
    assert [(entry["url"], entry["nsamples"]) for entry in index["shardlist"]] == [
        ("00000.tar", 3),
        ("00001.tar", 3),
        ("00002.tar", 1),
    ]


def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    prepare(Numbers(), str(tmp_path), Storage(), 3)
    urls = Storage().expand(str(tmp_path / "train"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["01", "02", "03", "05", "06", "07", "09"]
    assert samples[0]["png"] == make_png(1)
    assert samples[0]["txt"].decode() == "number 1 ü"
    assert json.loads(samples[0]["json"]) == {"key": "01", "caption": "number 1 ü", "half": 0.5}


def test_offsets_are_those_of_the_tar_headers(tmp_path: Path) -> None:
    storage = Storage()
    prepare(Numbers(), str(tmp_path), storage, 3)
    index = Index.load(str(tmp_path / "train"), storage)
    scanned = Index.load(storage.expand(str(tmp_path / "train")), storage)
    assert len(index) == len(scanned) == 7
    assert index.fingerprint == scanned.fingerprint
    for position in range(7):
        url, entry = index.sample(position)
        assert scanned.sample(position)[0] == url
        for extension, member in scanned.sample(position)[1].members.items():
            assert (entry.members[extension].offset, entry.members[extension].size) == (
                member.offset,
                member.size,
            )
            assert entry.members[extension].crc32 is not None


def test_an_interrupted_preparation_is_run_again_to_the_same_bytes(tmp_path: Path) -> None:
    prepare(Numbers(), str(tmp_path / "whole"), Storage(), 3)
    with pytest.raises(KeyboardInterrupt):
        prepare(Numbers(fail_at=7), str(tmp_path / "again"), Storage(), 3)
    assert files(tmp_path / "again") and not (tmp_path / "again/manifest.json").exists()
    prepare(Numbers(), str(tmp_path / "again"), Storage(), 3)
    assert files(tmp_path / "again") == files(tmp_path / "whole")


def test_a_complete_one_is_left_alone_and_another_one_refused(tmp_path: Path) -> None:
    first = prepare(Numbers(), str(tmp_path), Storage(), 3)
    before = files(tmp_path)
    assert prepare(Numbers(fail_at=0), str(tmp_path), Storage(), 3) == first
    with pytest.raises(DataError, match="samples_per_shard=3, asked for is 4"):
        prepare(Numbers(), str(tmp_path), Storage(), 4)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("keys", "message"),
    [(["1", "1"], "same key twice"), (["1.5"], "key='1.5'"), (["1", "2", "1"], "same key twice")],
)
def test_bad_keys_are_named(tmp_path: Path, keys: list[str], message: str) -> None:
    class All(Numbers):
        def split(self, key: str) -> str:
            return TRAIN

    with pytest.raises(DataError, match=message):
        prepare(All(keys), str(tmp_path), Storage())
    with pytest.raises(DataError, match="samples_per_shard=0"):
        prepare(Numbers(), str(tmp_path), Storage(), 0)


def test_progress_goes_to_stderr_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(Numbers(), str(tmp_path), Storage(), 3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "preparing numbers" in captured.err


def test_into_object_storage(store: EmbeddedStore, tmp_path: Path) -> None:
    storage = Storage()
    prepare(Numbers(), f"{store.url}/prepared", storage, 3)
    prepare(Numbers(), str(tmp_path), storage, 3)
    for name, content in files(tmp_path).items():
        assert storage.read(f"{store.url}/prepared/{name}") == content
    assert io.BytesIO(storage.read(f"{store.url}/prepared/train/00000.tar")).getbuffer().nbytes % 512 == 0
