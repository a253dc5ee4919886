import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from composed import inputs_of, picture, source
from pyarrow import Table, parquet

from data.errors import DataError
from data.sources import HELD_OUT, TRAIN, LeftOut, Source
from data.transforms import BadSample


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for number, name in enumerate(("b/1.jpg", "a/2.JPG", "a/3.png", "notes.md", "c.webp")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number, kind="PNG" if name.endswith("png") else "JPEG"))
    return folder


def test_pictures_alone(folder: Path) -> None:
    found = source("image_folder", folder=folder)
    assert [(sample.key, sample.extension, sample.metadata["file_name"]) for sample in found] == [
        ("a_2", "jpg", "a/2.JPG"),
        ("a_3", "png", "a/3.png"),
        ("b_1", "jpg", "b/1.jpg"),
        ("c", "webp", "c.webp"),
    ]
    assert found[0].image == picture(1) and found[0].caption == ""
    assert inputs_of("celebahq", found[0]) == {}


def test_captions_beside(folder: Path) -> None:
    (folder / "a/2.txt").write_text(" two\n words ")
    (folder / "a/3.txt").write_bytes(b"\xff\xfe")
    (folder / "b/1.txt").write_text(" \n")
    found = source("image_folder", folder=folder, captions="txt")
    assert found[0].caption == "two words"
    assert inputs_of("txt2img_1p45b", found[0])["caption"].shape == (77,)
    assert reasons(found, 1, 2, 3) == ["not_utf8", "no_caption", "missing"]


def reasons(found: Source, *positions: int) -> list[str]:
    told = []
    for position in positions:
        with pytest.raises((BadSample, LeftOut)) as caught:
            found[position]
        told.append(caught.value.reason)
    return told


ROWS = [
    {"file": "b/1.jpg", "said": " one ", "width": 40},
    {"file": "a/2.JPG", "said": "two"},
    {"file": "gone.jpg", "said": "gone"},
    {"file": "a/3.png", "said": ""},
    {"file": "../secret.jpg", "said": "out"},
    {"file": "/etc/passwd", "said": "out"},
    {"file": "", "said": "no name"},
]


def as_csv(path: Path) -> None:
    lines = ["file,said,width", *(f"{row['file']},{row['said']},{row.get('width', '')}" for row in ROWS)]
    path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n")


def as_json(path: Path) -> None:
    path.write_text(json.dumps(ROWS))


def as_jsonl(path: Path) -> None:
    path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")


def as_parquet(path: Path) -> None:
    buffer = io.BytesIO()
    parquet.write_table(Table.from_pylist(ROWS), buffer)
    path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize("write", [as_csv, as_json, as_jsonl, as_parquet])
def test_captions_in_a_table(folder: Path, write: Callable[[Path], None]) -> None:
    (folder.parent / "secret.jpg").write_bytes(picture(9))
    table = folder.parent / f"captions.{write.__name__.removeprefix('as_')}"
    write(table)
    found = source("image_folder", folder=folder, captions=table, file_column="file", caption_column="said")
    assert len(found) == 6 and found.dropped == {"no_file_name": 1}
    assert (found[0].key, found[0].caption, found[1].caption) == ("b_1", "one", "two")
    assert str(found[0].metadata["width"]) == "40"
    assert reasons(found, 2, 3, 4, 5) == ["missing", "no_caption", "unsafe_name", "unsafe_name"]


def test_several_captions(folder: Path) -> None:
    table = folder.parent / "captions.json"
    table.write_text(json.dumps([{"file_name": "b/1.jpg", "text": ["one", "", "uno"]}]))
    (sample,) = list(source("image_folder", folder=folder, captions=table))
    assert (sample.caption, sample.metadata) == ("one", {"captions": ["one", "uno"]})


def test_a_row_for_each_caption(folder: Path) -> None:
    """As Flickr's tables are."""
    table = folder.parent / "captions.csv"
    table.write_text("image,n,text,by\nc.webp,0,one,me\nb/1.jpg,0,uno,me\nc.webp,1,two,me\nc.webp,2,,me\n")
    found = source("image_folder", folder=folder, captions=table, file_column="image")
    assert found.dropped == {"no_file_name": 0}
    assert [(sample.key, sample.caption, sample.metadata) for sample in found] == [
        ("c", "one", {"captions": ["one", "two"], "n": ["0", "1", "2"], "by": "me"}),
        ("b_1", "uno", {"n": "0", "by": "me"}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.xlsx", "", "no table: give a file that ends in"),
        ("t.json", "{", "can't be read as json"),
        ("t.json", "[1]", "no rows with named columns"),
        ("t.json", "[" * 100_000, "can't be read as json"),
        ("t.csv", "a,b\n1,2\n", "no row has a column file_name"),
        ("t.csv", "file_name,b\n1,2\n", "no row has a column text"),
    ],
)
def test_tables_of_another_form_are_named(folder: Path, name: str, content: str, says: str) -> None:
    (folder.parent / name).write_text(content)
    with pytest.raises(DataError, match=says):
        source("image_folder", folder=folder, captions=folder.parent / name)


def test_the_splits_of_ffhq_celebahq_and_places_are_theirs(tmp_path: Path) -> None:
    layouts = {
        "ffhq": {"00000/00012.png": TRAIN, "59000/59999.png": TRAIN, "60000/60000.png": HELD_OUT},
        "places": {"data_large/a/abbey/00000001.jpg": TRAIN, "val_large/Places365_val_00000001.jpg": HELD_OUT},
        "celebahq": {"0.jpg": TRAIN, "1.jpg": HELD_OUT, "2.jpg": TRAIN},
    }
    (tmp_path / "validation.txt").write_text("1.jpg\n")
    for name, files in layouts.items():
        for number, file in enumerate(files):
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number, kind="PNG" if file.endswith("png") else "JPEG"))
        listed = {"held_out": tmp_path / "validation.txt"} if name == "celebahq" else {}
        found = source(name, folder=tmp_path / name, **listed)
        assert {sample.metadata["file_name"]: sample.split for sample in found} == files
        experiment = {"places": "inpainting"}.get(name, name)
        inputs = inputs_of(experiment, found[0])
        assert {key: tuple(value.shape) for key, value in inputs.items()} == (
            {"masked_image": (4, 256, 256)} if name == "places" else {}
        )


def test_no_picture(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no picture"):
        source("image_folder", folder=tmp_path)
