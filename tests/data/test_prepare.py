import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import webdataset
from made_files import make_png

from data.errors import DataError
from data.index import Index
from data.prepare import prepare
from data.share import Share
from data.sources import HELD_OUT, TRAIN, Sample
from data.sources.image_folder import ImageFolder
from data.store import EmbeddedStore
from data.stream import Storage
from data.survey import Criteria
from training.compose import composed
from training.errors import ConfigurationError
from training.prepare import run


class Numbers:
    """Ten pictures, every fourth of them held out."""

    name = "numbers"
    attribution = "nobody, public domain"
    splits = (TRAIN, HELD_OUT)
    dropped: Mapping[str, int] = {"no_name": 3}

    def __init__(self, keys: Sequence[str] | None = None, pictures: Sequence[bytes] | None = None) -> None:
        self.keys = keys or [f"{number:02d}" for number in range(10)]
        self.pictures = pictures or [make_png(number) for number in range(len(self.keys))]
        self.settings: Mapping[str, object] = {"size": 8}

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, n: int) -> str:
        return self.keys[n]

    def __getitem__(self, n: int) -> Sample:
        split = TRAIN if n % 4 else HELD_OUT
        return Sample(self.keys[n], self.pictures[n], "png", f"number {n} ü", {"half": n / 2}, split=split)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_layout_and_manifest(tmp_path: Path) -> None:
    manifest = prepare(Numbers(), str(tmp_path), Storage(), 3)
    assert sorted(name for name in files(tmp_path) if not name.startswith("preparation/")) == [
        "contact_sheet.html",
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


class Killed(BaseException):
    pass


class Failing(Storage):
    """Dies at its n-th writing, before or after it."""

    def __init__(self, fail_at: int, after: bool) -> None:
        super().__init__()
        self.fail_at, self.after = fail_at, after
        self.written: list[str] = []

    def write(self, url: str, data: bytes) -> None:
        if len(self.written) == self.fail_at and not self.after:
            raise Killed
        super().write(url, data)
        self.written.append(url)
        if len(self.written) > self.fail_at:
            raise Killed


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes_and_writes_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda file: None)  # the disk's word on hundreds of files would take long
    whole = Failing(1000, after=False)
    prepare(Numbers(), str(tmp_path / "whole"), whole, 5)
    for fail_at, after in product(range(len(whole.written)), (False, True)):
        folder = tmp_path / f"{fail_at}{after}"
        with pytest.raises(Killed):
            prepare(Numbers(), str(folder), Failing(fail_at, after), 5)
        rest = Failing(1000, after=False)
        prepare(Numbers(), str(folder), rest, 5)
        assert files(folder) == files(tmp_path / "whole")
        # of a shard its bytes, its offsets and its note; or the indexes, and the contact sheet
        assert len(rest.written) <= len(whole.written) - fail_at + 3


@pytest.mark.parametrize("of", [1, 2, 5])
def test_tasks_together_and_each_alone_give_the_same_bytes(tmp_path: Path, of: int) -> None:
    prepare(Numbers(), str(tmp_path / "whole"), Storage(), 3)
    for number in range(of):  # the others never run
        prepare(Numbers(), str(tmp_path / str(number)), Storage(), 3, share=Share(number, of))
        assert files(tmp_path / str(number)) == files(tmp_path / "whole")


def test_tasks_share_what_is_to_be_done() -> None:
    items = range(11)
    first_steps = [Share(number, 3).order(items)[:3] for number in range(3)]
    assert len({item for steps in first_steps for item in steps}) == 9  # nobody does another's at first
    assert all(sorted(Share(number, 3).order(items)) == list(items) for number in range(3))
    assert Share(1, 3).order(items) == [1, 4, 7, 10, 8, 5, 2, 9, 6, 3, 0]
    for number, of in ((3, 3), (-1, 3), (0, 0)):
        with pytest.raises(DataError, match=f"share.number={number}"):
            Share(number, of)


def test_over_processes_the_bytes_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(6):
        (tmp_path / f"pictures/{number}.png").write_bytes(make_png(number))
    source = ImageFolder(str(tmp_path / "pictures"), Storage(), held_out=0.0)  # others would bring all of pytest along
    prepare(source, str(tmp_path / "one"), Storage(), 3)
    prepare(source, str(tmp_path / "two"), Storage(), 3, processes=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.parametrize("written", [1, 5, 1000])
def test_where_another_one_began_the_remedy_leads_to_what_a_fresh_place_gives(tmp_path: Path, written: int) -> None:
    """Cut short as it looked, or wrote, or complete."""
    folder = tmp_path / "a"
    with suppress(Killed):
        prepare(Numbers(), str(folder), Failing(written, after=True), 2)
    left = files(folder)
    if written == 1000:
        with pytest.raises(DataError, match=r"remove all of the data set, .*/manifest\.json and .*{train,heldout,prep"):
            prepare(Numbers(), str(folder), Storage(), 5)
        (folder / "manifest.json").unlink()
        del left["manifest.json"]
    with pytest.raises(DataError, match=r"other settings.* remove .*/a/{train,heldout,preparation}"):
        prepare(Numbers(), str(folder), Storage(), 5)
    assert files(folder) == left
    for name in ("train", "heldout", "preparation"):
        shutil.rmtree(folder / name, ignore_errors=True)
    prepare(Numbers(), str(folder), Storage(), 5)
    prepare(Numbers(), str(tmp_path / "b"), Storage(), 5)
    assert files(folder) == files(tmp_path / "b")


def test_a_shard_that_somebody_removed_is_written_again(tmp_path: Path) -> None:
    prepare(Numbers(), str(tmp_path), Storage(), 3)
    whole = files(tmp_path)
    for name in ("manifest.json", "train/00001.tar", "train/00001.offsets.npz"):
        (tmp_path / name).unlink()
    prepare(Numbers(), str(tmp_path), Storage(), 3)
    assert files(tmp_path) == whole


@pytest.mark.parametrize("name", ["train/00000.tar", "heldout/mine.tar", "train/index.json"])
def test_shards_of_others_are_never_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(b"somebody's")
    with pytest.raises(DataError, match=f"{name} is there already.*choose another url"):
        prepare(Numbers(), str(tmp_path), Storage(), 3)
    assert files(tmp_path) == {name: b"somebody's"}


def test_a_source_that_changes_meanwhile_is_named(tmp_path: Path) -> None:
    class Changing(Numbers):
        seen = 0

        def __getitem__(self, n: int) -> Sample:
            Changing.seen += 1
            return super().__getitem__(n if Changing.seen <= 10 or n != 3 else 4)

    with pytest.raises(DataError, match="isn't what it was"):
        prepare(Changing(), str(tmp_path), Storage(), 3)


def test_bad_pictures_are_left_out_and_counted_and_shards_stay_full(tmp_path: Path) -> None:
    pictures = [make_png(number) for number in range(10)]
    pictures[1] = b"no picture"
    pictures[2] = pictures[2][:-40]
    pictures[3] = make_png(3, size=4)
    pictures[7] = pictures[6]
    criteria = Criteria(smallest_side=5, drop_same=True)
    manifest = prepare(Numbers(pictures=pictures), str(tmp_path), Storage(), 2, criteria)
    dropped = {"no_name": 3, "duplicate": 1, "too_small": 1, "truncated": 1, "undecodable": 1}
    assert manifest["dropped"] == dropped
    assert manifest["dropped_examples"]["duplicate"] == ["07"]
    assert manifest["candidates"] == 10
    index = json.loads((tmp_path / "train/index.json").read_text())
    assert [entry["nsamples"] for entry in index["shardlist"]] == [2, 1]
    assert manifest["sizes"]["shorter_side"] == {"below 64": 6, **dict.fromkeys(SIDES, 0)}
    page = (tmp_path / "contact_sheet.html").read_text()
    for told in ("truncated", "number 6 ü", "nobody, public domain"):
        assert told in page


SIDES = ("64 to 128", "128 to 256", "256 to 512", "512 to 1024", "1024 to 2048", "from 2048")


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0 of 10 candidates are samples; left out: 10 too_small"):
        prepare(Numbers(), str(tmp_path), Storage(), 3, Criteria(smallest_side=9))


@pytest.mark.parametrize("objects", [7, ["x"], [{"box": 3}], [{"class": 1, "box": [9, 9, 0, 0]}], [{"box": [0] * 4}]])
def test_a_contact_sheet_lives_with_objects_of_any_form(tmp_path: Path, objects: object) -> None:
    class Odd(Numbers):
        def __getitem__(self, n: int) -> Sample:
            return replace(super().__getitem__(n), metadata={"objects": objects})

    prepare(Odd(["only"]), str(tmp_path), Storage(), 3)
    assert (tmp_path / "contact_sheet.html").exists()


def test_the_contact_sheet_is_one_file_and_escapes_what_it_shows(tmp_path: Path) -> None:
    class Hostile(Numbers):
        def __getitem__(self, n: int) -> Sample:
            return replace(super().__getitem__(n), caption="<script>alert(1)</script>", metadata={"<b>": ["<i>"]})

    prepare(Hostile(), str(tmp_path), Storage(), 3)
    page = (tmp_path / "contact_sheet.html").read_text()
    assert "<script" not in page and "<b>" not in page.replace("<p><b>", "") and "<i>" not in page
    assert "http" not in page and page.count("data:image/jpeg;base64,") == 10


def test_asked_to_stop_by_slurm_it_leaves_with_status_75_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(make_png(number))
    config = composed(
        "prepare", ["source=image_folder", f"source.folder={tmp_path}", f"url={tmp_path / 'out'}", "processes=1"]
    )
    whole = ImageFolder.__getitem__

    def asked(source: ImageFolder, position: int) -> Sample:
        if position == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        return whole(source, position)

    before = signal.getsignal(signal.SIGUSR1)
    try:
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
            patch.setattr(ImageFolder, "__getitem__", asked)
            run(config)
        assert left.value.code == 75 and not (tmp_path / "out/manifest.json").exists()
        run(config)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (tmp_path / "out/manifest.json").exists()


def test_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(make_png(number, 20))
        (folder / f"{number}.txt").write_text(f"number {number}")
    arguments = ["source=image_folder", f"source.folder={folder}", "source.captions=txt", f"url={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "training.prepare", *arguments, "processes=1", "source.held_out=0.3"]
    for setting in ("criteria.drop_similar=9", "share.number=2", "processes=0"):
        with pytest.raises((DataError, ConfigurationError), match=setting):
            run(composed("prepare", [*arguments, setting]))
    done = subprocess.run([*command, "share.number=1", "share.of=2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/manifest.json").read_text())["splits"]["train"]["samples"] < 6


def test_a_complete_one_is_left_alone_and_another_one_refused(tmp_path: Path) -> None:
    first = prepare(Numbers(), str(tmp_path), Storage(), 3)
    before = files(tmp_path)
    assert prepare(Numbers(), str(tmp_path), Failing(0, after=False), 3) == first
    with pytest.raises(DataError, match="samples_per_shard=3, asked for is 4"):
        prepare(Numbers(), str(tmp_path), Storage(), 4)
    assert files(tmp_path) == before


def test_equal_keys_become_different_ones_whatever_is_left_out(tmp_path: Path) -> None:
    keys = ["a", "b", "a", "a-2", "b", "a", "c"]
    told = {2: "a~2", 4: "b~2", 5: "a~3"}
    for bad in ((), (0, 1), (2,)):
        pictures = [b"none" if number in bad else make_png(number) for number in range(7)]
        folder = tmp_path / f"{bad}"
        manifest = prepare(Numbers(keys, pictures), str(folder), Storage(), 2)
        found = {}
        for split in ("train", "heldout"):
            for sample in webdataset.WebDataset(Storage().expand(str(folder / split)), shardshuffle=False):
                found[sample["txt"].decode()] = sample["__key__"]
                assert json.loads(sample["json"])["key"] == sample["__key__"]
        assert found == {f"number {n} ü": told.get(n, keys[n]) for n in range(7) if n not in bad}
        assert manifest["dropped_examples"].get("undecodable", []) == [keys[n] for n in bad]
        assert "a~3" in (folder / "contact_sheet.html").read_text()


def test_that_nothing_is_held_out_is_told_before_shards_are_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Killed):
        prepare(Numbers(["0", "1"]), str(tmp_path / "some"), Failing(1, after=False))
    assert "held out" not in caplog.text

    class NoneHeldOut(Numbers):
        def __getitem__(self, n: int) -> Sample:
            return replace(super().__getitem__(n), split=TRAIN)

    with pytest.raises(Killed):
        prepare(NoneHeldOut(), str(tmp_path / "none"), Failing(1, after=False))
    assert "no sample is held out" in caplog.text and "larger source.held_out, such as 0.5" in caplog.text


def test_bad_keys_are_named(tmp_path: Path) -> None:
    for key in ("1.5", "1~2", "1/2", ""):
        with pytest.raises(DataError, match=f"key='{key}'"):
            prepare(Numbers([key]), str(tmp_path), Storage())
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
