"""Metadata from the parquet files beside shards: the same samples pass as by their .json, and no .json is read."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from made_files import make_png, make_tar
from pyarrow import Table, parquet

from data.buckets import Buckets
from data.index import Index
from data.indexing import build_index
from data.stream import Storage
from data.where import Where

Row = dict[str, Any]
LABELS = ("UNLIKELY", "UNSURE", "NSFW", None)
WHERES: list[dict[str, dict[str, Any]]] = [
    {"similarity": {"at_least": 0.3}},
    {"similarity": {"at_most": 0.3, "unknown": "keep"}},
    {"NSFW": {"among": ["UNLIKELY", "UNSURE"]}},
    {"NSFW": {"not_among": ["NSFW"], "unknown": "keep"}},
    {"aspect": {"at_least": 0.5, "at_most": 1.5}, "shorter_side": {"at_least": 120}},
    {"watermark": {"at_most": 3}, "similarity": {"at_least": 0.1}},
    {"caption": {"not_among": ["picture 3"]}, "safe": {"among": [1]}},
]


def row(number: int) -> Row:
    """A sample's metadata, of which some are unknown, infinite or no numbers at all."""
    choose = random.Random(number)
    return {
        "key": f"{number:06d}",
        "caption": f"picture {number}",
        "width": choose.choice([100, 240, 360]),
        "height": choose.choice([100, 240, None]),
        "similarity": choose.choice([choose.random(), 0.3, math.nan, math.inf, None]),
        "NSFW": choose.choice(LABELS),
        "watermark": choose.choice([1, 3, 5, None]),
        "safe": choose.choice([True, False, None]),
        "blob": choose.randbytes(20_000).hex(),
    }


def tar_of(rows: Sequence[Row], json_of: Callable[[Row], bytes]) -> bytes:
    members = {}
    for one in rows:
        members[f"{one['key']}.png"] = make_png(int(one["key"]))
        members[f"{one['key']}.txt"] = one["caption"].encode()
        members[f"{one['key']}.json"] = json_of(one)
    return make_tar(members)


def as_json(one: Row) -> bytes:
    return json.dumps(one).encode()


def write_table(path: Path, rows: Sequence[Row]) -> None:
    buffer = io.BytesIO()
    parquet.write_table(Table.from_pylist(list(rows)), buffer)
    path.write_bytes(buffer.getvalue())


def shards_of(folder: Path, tables: bool = True, json_of: Callable[[Row], bytes] = as_json) -> str:
    """Three shards of twenty; the tables have their rows in another order, and those of pictures never fetched."""
    folder.mkdir()
    for shard in range(3):
        rows = [row(number) for number in range(20 * shard, 20 * shard + 20)]
        (folder / f"{shard:05d}.tar").write_bytes(tar_of(rows, json_of))
        if tables:
            failed = [row(number) | {"width": None, "height": None} for number in range(900, 907)]
            write_table(folder / f"{shard:05d}.parquet", random.Random(shard).sample(rows + failed, 27))
    return str(folder)


def kept(folder: str, place: Path, where: dict[str, dict[str, Any]], storage: Storage | None = None) -> list[str]:
    """Keys of the samples in an index, which is written to `place`."""
    index = Index.load(build_index(folder, str(place), storage or Storage(), Where(where)), Storage())
    return [index.sample(position)[1].key for position in range(len(index))]


def left_out(text: str) -> str:
    return next(line.partition("; left out: ")[2] for line in text.splitlines() if "left out" in line)


@pytest.mark.parametrize("where", WHERES, ids=lambda where: "+".join(where))
def test_the_same_samples_pass_by_parquet_as_by_json(
    where: dict[str, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    by_json = kept(shards_of(tmp_path / "a", tables=False), tmp_path / "x", where)
    counted = left_out(caplog.text)
    assert "parquet" not in caplog.text
    caplog.clear()
    lying = shards_of(tmp_path / "b", json_of=lambda one: b"{}")
    assert kept(lying, tmp_path / "y", where) == by_json
    assert 0 < len(by_json) < 60 and left_out(caplog.text) == counted
    assert "60 samples were judged by the parquet files" in caplog.text


class Watched(Storage):
    """Remembers of which objects parts were read."""

    def __init__(self) -> None:
        super().__init__()
        self.read_of: set[str] = set()

    def _range(self, url: str, start: int, stop: int) -> bytes:
        self.read_of.add(url)
        return super()._range(url, start, stop)


def test_of_shards_with_an_index_no_byte_is_read_and_of_parquet_its_columns_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, where, storage = shards_of(tmp_path / "a"), WHERES[0], Watched()
    folder = f"memory:/{tmp_path}"
    for path in Path(local).iterdir():
        storage.write(f"{folder}/{path.name}", path.read_bytes())
    build_index(folder, folder, storage)
    monkeypatch.setattr("data.stream._SCAN_BYTES", 4096)
    storage.read_of.clear()
    storage.traffic.take()
    assert kept(folder, tmp_path / "y", where, storage) == kept(local, tmp_path / "x", where)
    assert storage.read_of == {f"{folder}/0000{shard}.parquet" for shard in range(3)}
    index_bytes = sum(storage.size(url) for url in storage.list(folder) if url.endswith((".json", ".npz")))
    tables = sum(storage.size(url) for url in storage.list(folder) if url.endswith(".parquet"))
    assert tables > 3_000_000 > 10 * (storage.traffic.take().bytes_read - index_bytes)


def test_samples_and_rows_without_one_another_are_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = tmp_path / "a"
    folder.mkdir()
    rows = [{"key": f"{number:06d}", "caption": "x", "similarity": number / 10} for number in range(10)]
    (folder / "0.tar").write_bytes(tar_of(rows, as_json))
    others = [{**one, "similarity": 9.0} for one in rows]  # of which it can be told that they weren't asked
    write_table(folder / "0.parquet", [*others[:3], others[4], others[4], *others[5:], {**others[0], "key": "000077"}])
    found = kept(str(folder), tmp_path / "x", {"similarity": {"at_least": 5}})
    assert found == [f"{number:06d}" for number in (0, 1, 2, 5, 6, 7, 8, 9)]
    assert "8 samples were judged by the parquet files" in caplog.text
    assert "2 samples have no row of their own key" in caplog.text and "first: 000003 of " in caplog.text
    assert "3 rows of parquet files have no sample" in caplog.text and "first: 000004 of " in caplog.text


@pytest.mark.parametrize("damage", ["column", "bytes", "key"])
def test_a_table_that_does_not_tell_is_left_and_json_is_read(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = shards_of(tmp_path / "a")
    wanted = kept(folder, tmp_path / "x", WHERES[0])
    table = tmp_path / "a" / "00001.parquet"
    rows = [row(number) for number in range(20, 40)]
    if damage == "bytes":
        table.write_bytes(table.read_bytes()[:-100])
    else:
        missing = {"column": "similarity", "key": "key"}[damage]
        write_table(table, [{name: value for name, value in one.items() if name != missing} for one in rows])
    caplog.clear()
    assert kept(folder, tmp_path / "x", WHERES[0]) == wanted  # noted for the table that was there: it is looked at anew
    told = "can't be read as parquet" if damage == "bytes" else f"has no column {missing}"
    assert "00001.parquet" in caplog.text and told in caplog.text
    assert "40 samples were judged by the parquet files" in caplog.text


def test_sizes_are_those_of_the_table_of_json_or_of_the_picture(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    buckets = Buckets(16, 4, 2.0)
    tall, square, wide = range(3)
    pictures = {
        "a": ({"png": make_png(0)}, {"width": 60, "height": 100}, tall),
        "b": ({"png": make_png(0), "json": b'{"width": 100, "height": 60}'}, {"width": None, "height": None}, square),
        "c": ({"png": make_png(0), "json": b'{"width": 100.0, "height": 60}'}, None, wide),
        "d": ({"png": make_png(0), "json": b'{"width": true, "height": "60"}'}, None, square),
        "e": ({"jpg": _lying_on_its_side(), "json": b"{}"}, None, tall),
        "f": ({"png": b"no picture"}, None, square),
    }
    members = {f"{key}.{kind}": data for key, (files, _, _) in pictures.items() for kind, data in files.items()}
    (tmp_path / "0.tar").write_bytes(make_tar(members))
    write_table(tmp_path / "0.parquet", [{"key": key} | said for key, (_, said, _) in pictures.items() if said])
    index = Index.load(build_index(str(tmp_path), str(tmp_path / "x"), Storage(), buckets=buckets), Storage())
    assert index.entries(0).buckets.tolist() == [bucket for _, _, bucket in pictures.values()]  # type: ignore[union-attr]
    assert index.shards[0].in_buckets == (2, 3, 1)
    assert "1 pictures have no size" in caplog.text and "first: f of " in caplog.text


def _lying_on_its_side() -> bytes:
    from PIL import ExifTags, Image

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (100, 60)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()
