"""What every kind of input has in common: one shape, whatever the sample, from a person, or of nothing."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import DataError
from data.inputs import Input, Parts
from data.inputs.caption import Caption
from data.inputs.label import Label
from data.inputs.layout import Layout
from data.inputs.low_resolution import LowResolution
from data.inputs.masked_image import MaskedImage
from data.inputs.segmentation import Segmentation
from data.tokenizer import BertTokenizer
from data.transforms import BadSample
from data.view import chosen


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


HEIGHT, WIDTH, SIZE = 24, 32, 16
CLASSES = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) // 64
PICTURE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def sample(number: int = 0, **details: Any) -> Parts:
    generator = np.random.default_rng(number)
    view = chosen(HEIGHT, WIDTH, SIZE, SIZE, True, generator)
    image = view.cut(PICTURE, SIZE, Image.Resampling.LANCZOS)
    details = {"label": 3, "objects": [{"class": 5, "box": [0, 0, WIDTH, HEIGHT]}], **details}
    members = {"seg.png": png(CLASSES)}
    return Parts(members, details, "a cat", image, view, generator)


@pytest.fixture
def described(tmp_path: Path) -> dict[str, Any]:
    """By input, what a person would give."""
    (tmp_path / "picture.png").write_bytes(png(PICTURE))
    (tmp_path / "classes.png").write_bytes(png(CLASSES))
    (tmp_path / "layout.json").write_text(json.dumps([{"class": 5, "box": [0, 0, 0.5, 1]}]))
    picture = str(tmp_path / "picture.png")
    return {
        "caption": "a dog",
        "label": 7,
        "layout": str(tmp_path / "layout.json"),
        "low_resolution": picture,
        "blindly": picture,
        "masked_image": (picture, str(tmp_path / "classes.png")),
        "segmentation": str(tmp_path / "classes.png"),
    }


INPUTS: dict[str, Input] = {
    "caption": Caption(BertTokenizer(8)),
    "label": Label(10),
    "layout": Layout(objects=4),
    "low_resolution": LowResolution(4),
    "blindly": LowResolution(4, "bsr"),
    "masked_image": MaskedImage(SIZE),
    "segmentation": Segmentation(SIZE),
}
SHAPES = {
    "caption": (8,),
    "label": (),
    "layout": (14,),
    "low_resolution": (3, 4, 4),
    "blindly": (3, 4, 4),
    "masked_image": (4, SIZE, SIZE),
    "segmentation": (SIZE, SIZE),
}


@pytest.mark.parametrize("name", INPUTS)
def test_one_shape_and_type_wherever_it_comes_from(name: str, described: dict[str, Any]) -> None:
    kind = INPUTS[name]
    all_of_them = [kind.read(sample()), kind.nothing(), kind.parse(described[name])]
    assert {tuple(values.shape) for values in all_of_them} == {SHAPES[name]}
    assert len({values.dtype for values in all_of_them}) == 1
    assert not torch.equal(all_of_them[0], all_of_them[1])


@pytest.mark.parametrize("name", INPUTS)
def test_a_sample_has_one_input(name: str) -> None:
    assert torch.equal(INPUTS[name].read(sample(4)), INPUTS[name].read(sample(4)))


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("label", "ten", "0 to 9"),
        ("label", 10, "0 to 9"),
        ("layout", "/no/file.json", "give"),
        ("layout", [{"class": 5, "box": [0.5, 0, 0.2, 1]}], "left < right"),
        ("layout", [{"class": 8191, "box": [0, 0, 1, 1]}], "0 to 8190"),
        ("low_resolution", "/no/picture.png", "path of a picture"),
        ("masked_image", ("/no/picture.png", "/no/mask.png"), "a picture and of its mask"),
        ("segmentation", "/no/classes.png", "8-bit PNG"),
    ],
)
def test_what_a_person_gives_wrongly_is_named(name: str, wrong: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        INPUTS[name].parse(wrong)


@pytest.mark.parametrize(
    ("name", "details", "reason"),
    [
        ("label", {"label": None}, "no_label"),
        ("label", {"label": 10}, "no_label"),
        ("layout", {"objects": None}, "no_layout"),
        ("layout", {"objects": [{"class": 1}]}, "no_layout"),
        ("layout", {"objects": [{"class": 9000, "box": [0, 0, 9, 9]}]}, "no_layout"),
    ],
)
def test_samples_without_it_are_bad(name: str, details: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadSample) as caught:
        INPUTS[name].read(sample(**details))
    assert caught.value.reason == reason


def test_a_segmentation_is_cut_like_its_picture() -> None:
    """A map made of the picture's own bytes gives the picture's own cut-out."""
    for number in range(6):
        generator = np.random.default_rng(number)
        view = chosen(HEIGHT, WIDTH, SIZE, HEIGHT, True, generator)
        cut = view.cut(CLASSES, SIZE, Image.Resampling.NEAREST)
        parts = Parts({"seg.png": png(CLASSES)}, {}, "", PICTURE, view, generator)
        assert (INPUTS["segmentation"].read(parts).numpy() == cut).all()


def test_segmentations_of_another_size_or_kind_are_bad() -> None:
    whole = sample()
    for members, reason in (
        ({}, "no_segmentation"),
        ({"seg.png": png(CLASSES[:8])}, "undecodable"),
        ({"seg.png": png(PICTURE)}, "undecodable"),
        ({"seg.png": b"no picture"}, "undecodable"),
    ):
        with pytest.raises(BadSample) as caught:
            INPUTS["segmentation"].read(Parts(members, {}, "", whole.image, whole.view, whole.generator))
        assert caught.value.reason == reason


def test_layout_tokens_are_the_published_ones() -> None:
    """Class, top-left and bottom-right for each object, the largest first; nothing is the last token; then the crop."""
    layout = Layout(objects=3, vocabulary=8192, crop=True)  # a grid of 90 x 90
    found = [(7, (0.5, 0.5, 0.6, 0.6)), (2, (0.0, 0.0, 1.0, 0.5))]
    whole = 89 * 90 + 89
    expected = [2, 0, round(0.5 * 89) * 90 + 89, 7, 44 * 90 + 44, 53 * 90 + 53, 8191, 8191, 8191, 0, whole]
    assert layout.tokens(found, (0.0, 0.0, 1.0, 1.0)).tolist() == expected
    assert Layout().nothing().tolist() == [8191] * 90 + [0, whole]
    many = [(i, (0.0, 0.0, (i + 1) / 9, 1.0)) for i in range(8)]
    assert layout.tokens(many, (0.0, 0.0, 1.0, 1.0)).tolist()[::3][:3] == [7, 6, 5]
