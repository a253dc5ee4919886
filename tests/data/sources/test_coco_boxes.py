import json
from pathlib import Path
from typing import Any

import pytest
from composed import inputs_of, picture, source

from data.errors import DataError
from data.sources import LeftOut


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in (3, 7):
        (tmp_path / f"images/{number}.jpg").write_bytes(picture(number))
    write(tmp_path / "instances.json", [(3, 18, [10, 5, 20, 10]), (3, 1, [0, 0, 40, 30]), (9, 1, [0, 0, 1, 1])])
    write(tmp_path / "stuff.json", [(7, 92, [0, 0, 10, 10])], categories={92: "banner"})
    return tmp_path


def write(path: Path, boxes: list[tuple[int, int, list[float]]], **changes: Any) -> None:
    categories = changes.get("categories", {1: "person", 18: "dog"})
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in (7, 3)] + [{"id": 9, "file_name": "../9.jpg"}],
        "annotations": [{"image_id": n, "category_id": c, "bbox": box} for n, c, box in boxes],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }
    path.write_text(json.dumps(content))


def test_boxes_are_read_by_layout_to_image(folder: Path) -> None:
    found = source("coco_boxes", images=folder / "images", annotations=folder / "instances.json")
    assert found.dropped == {"no_layout": 1}
    assert (found[0].key, found[0].metadata["objects"]) == (
        "000000000003",
        [
            {"class": 1, "name": "dog", "box": [10, 5, 30, 15]},
            {"class": 0, "name": "person", "box": [0, 0, 40, 30]},
        ],
    )
    tokens = inputs_of("layout_coco", found[0])["layout"]
    assert tokens.shape == (92,) and tokens[:9:3].tolist() == [0, 1, 8191]
    with pytest.raises(LeftOut, match="unsafe_name"):
        found[1]


def test_things_and_stuff_together(folder: Path) -> None:
    both = f"[{folder}/instances.json,{folder}/stuff.json]"
    config = source("coco_boxes", images=folder / "images", annotations=both)
    assert [sample_objects(config, n) for n in (0, 1)] == [["dog", "person"], ["banner"]]
    assert config[1].metadata["objects"][0]["class"] == 2  # type: ignore[index]


def sample_objects(found: Any, position: int) -> list[str]:
    return [entry["name"] for entry in found[position].metadata["objects"]]


@pytest.mark.parametrize("content", ["[]", '{"images": [], "annotations": [{"bbox": 3}], "categories": []}'])
def test_another_format_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=r"x\.json"):
        source("coco_boxes", images=tmp_path, annotations=tmp_path / "x.json")
