import io
from pathlib import Path

import numpy as np
import pytest
from composed import inputs_of, picture, source
from PIL import Image

from data.prepare import prepare
from data.sources import HELD_OUT, TRAIN
from data.stream import Storage
from data.transforms import BadSample


def class_map(number: int, width: int = 40, height: int = 30) -> bytes:
    classes = np.full((height, width), number, np.uint8)
    classes[: height // 2] = 181
    buffer = io.BytesIO()
    Image.fromarray(classes).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("train2017/1", "train2017/2", "train2017/4", "val2017/3"):
        for kind in ("images", "maps"):
            (tmp_path / kind / name).parent.mkdir(parents=True, exist_ok=True)
        number = int(name[-1])
        (tmp_path / f"images/{name}.jpg").write_bytes(picture(number))
        if number != 2:
            (tmp_path / f"maps/{name}.png").write_bytes(class_map(number, width=41 if number == 4 else 40))
    return tmp_path


@pytest.mark.parametrize(("name", "more"), [("coco_stuff", {}), ("landscapes", {"attribution": "me"})])
def test_maps_are_read_by_semantic_synthesis(folder: Path, name: str, more: dict[str, str]) -> None:
    found = source(name, images=folder / "images", maps=folder / "maps", **more)
    classes = inputs_of("semantic", found[0])["segmentation"]
    assert classes.shape == (256, 256) and set(classes.unique().tolist()) <= {1, 181}
    with pytest.raises(BadSample, match="no_segmentation"):
        found[1]
    if name == "coco_stuff":
        assert [found[n].split for n in (0, 3)] == [TRAIN, HELD_OUT]


def test_maps_of_another_size_are_left_out(folder: Path, tmp_path: Path) -> None:
    found = source("coco_stuff", images=folder / "images", maps=folder / "maps")
    manifest = prepare(found, str(tmp_path / "out"), Storage())
    assert manifest["dropped"] == {"no_segmentation": 1, "undecodable": 1}
