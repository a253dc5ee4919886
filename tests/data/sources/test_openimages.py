import io
import tracemalloc
from pathlib import Path

import pytest
from composed import inputs_of, picture, source
from PIL import Image

from data.errors import DataError

HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "boxes.csv").write_text(
        f"{HEADER}\nbb,xclick,/m/cat,1,0.25,0.75,0.5,1,0\naa,xclick,/m/dog,1,0,0.5,0,0.5,0\n"
        "bb,xclick,/m/dog,1,0,1,0,1,0\naa,xclick,/m/unheard,1,0,1,0,1,0\n"
    )
    (tmp_path / "classes.csv").write_text("/m/dog,Dog\n/m/cat,Cat\n")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/aa.jpg").write_bytes(picture(0, 40, 20))
    lying = io.BytesIO()  # 40 x 20 as it is stored, 20 x 40 as it is seen
    with Image.open(io.BytesIO(picture(1, 40, 20))) as stored:
        exif = Image.Exif()
        exif[0x0112] = 6
        stored.save(lying, "JPEG", exif=exif)
    (tmp_path / "images/bb.jpg").write_bytes(lying.getvalue())
    return tmp_path


@pytest.mark.parametrize("names_first", [False, True])
def test_boxes_in_pixels_of_the_picture_as_it_is_seen(folder: Path, names_first: bool) -> None:
    if names_first:  # as the seventh version has it
        (folder / "classes.csv").write_text("LabelName,DisplayName\n" + (folder / "classes.csv").read_text())
    found = source("openimages", images=folder / "images", boxes=folder / "boxes.csv", classes=folder / "classes.csv")
    assert found.dropped == {"box_of_unknown_class": 1}
    assert [sample.key for sample in found] == ["aa", "bb"]
    assert found[0].metadata["objects"] == [{"class": 0, "name": "Dog", "box": [0, 0, 20, 10]}]
    assert found[1].metadata["objects"] == [
        {"class": 1, "name": "Cat", "box": [5, 20, 15, 40]},
        {"class": 0, "name": "Dog", "box": [0, 0, 20, 40]},
    ]
    tokens = inputs_of("layout_openimages", found[1])["layout"]
    assert tokens.shape == (92,) and tokens[:6:3].tolist() == [0, 1]  # the largest first


def test_boxes_take_little_more_memory_than_their_numbers(folder: Path) -> None:
    boxes = 20_000  # 1.2 MB of text, which is read a megabyte at a time
    lines = [f"{n // 8:016x},xclick,/m/dog,1,0.1234567,0.2345678,0.3456789,0.{n:07d},0" for n in range(boxes)]
    (folder / "boxes.csv").write_text("\n".join([HEADER, *lines]))
    paths = {"images": folder / "images", "boxes": folder / "boxes.csv", "classes": folder / "classes.csv"}
    tracemalloc.start()
    try:
        found = source("openimages", **paths)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == boxes // 8 and peak < 300 * boxes


def test_another_file_is_named(folder: Path) -> None:
    for name, content in (("boxes.csv", "a,b\n1,2\n"), ("boxes.csv", f"{HEADER}\na,x,/m/dog,1,left,1,0,1,0\n")):
        (folder / name).write_text(content)
        with pytest.raises(DataError, match=r"isn't like train-annotations-bbox\.csv"):
            source("openimages", images=folder / "images", boxes=folder / "boxes.csv", classes=folder / "classes.csv")
