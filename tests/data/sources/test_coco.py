import json
from dataclasses import replace
from pathlib import Path

import pytest
from composed import inputs_of, picture

from data.errors import DataError
from data.sources import HELD_OUT, Source
from data.sources.coco import CocoCaptions
from data.stream import Storage


@pytest.fixture
def coco(tmp_path: Path) -> CocoCaptions:
    (tmp_path / "images").mkdir()
    for number in (7, 3, 9):
        (tmp_path / "images" / f"COCO_{number}.JPG").write_bytes(bytes([number]))
    annotations = [
        (4, 7, "second  of\n7"),
        (2, 7, " first of 7 "),
        (1, 3, "of 3"),
        (6, 9, " "),
    ]
    content = {
        "images": [{"id": n, "file_name": f"COCO_{n}.JPG"} for n in (7, 3, 9)],
        "annotations": [{"id": i, "image_id": n, "caption": text} for i, n, text in annotations],
    }
    (tmp_path / "captions.json").write_text(json.dumps(content))
    return CocoCaptions(str(tmp_path / "captions.json"), str(tmp_path / "images"), Storage())


def test_samples(coco: CocoCaptions) -> None:
    source: Source = coco
    samples = list(source)
    assert inputs_of("txt2img_1p45b", replace(samples[1], image=picture(7)))["caption"].shape == (77,)
    assert [(sample.key, sample.image, sample.extension, sample.caption) for sample in samples] == [
        ("000000000003", b"\x03", "jpg", "of 3"),
        ("000000000007", b"\x07", "jpg", "first of 7"),
    ]
    assert samples[1].metadata == {"captions": ["first of 7", "second of 7"]}
    assert dict(source.dropped) == {"no_caption": 1}
    assert {sample.split for sample in samples} == {HELD_OUT}


def test_another_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(DataError, match=r"x\.json is no COCO caption file"):
        CocoCaptions(str(tmp_path / "x.json"), str(tmp_path), Storage())
    with pytest.raises(DataError, match=r"missing\.json"):
        CocoCaptions(str(tmp_path / "missing.json"), str(tmp_path), Storage())
