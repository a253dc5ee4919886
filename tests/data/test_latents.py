from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_files import make_png

from data.errors import DataError
from data.latents import BAD, KEY_NAME, MOMENTS, LatentsKey, MomentsReader, member_of
from data.pictures import ImageReader
from data.stream import Storage
from data.transforms import BadSample
from data.view import View, middle

KEY = LatentsKey("ab12", 0.18215, 8, 1.5, True, "fp16", {"width": {"at_least": 3}}, "cd34")


def generator(number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=number))


def test_moments_are_of_the_view_that_would_be_seen_of_the_picture() -> None:
    images = ImageReader(8, 8, flip=True, smallest_side=1, max_pixels=10**6)
    moments = MomentsReader(8, flip=True)
    plain, mirrored = torch.zeros(2, 4, 4).half(), torch.ones(2, 4, 4).half()
    view = View(12, 16, (3.0, 0.0, 14.0, 11.5))  # not the middle: what was encoded counts
    members = {MOMENTS: member_of(plain, mirrored, view), "json": b"{}"}
    seen_mirrored = []
    for number in range(40):
        a, b = generator(number), generator(number)
        of_image, of_moments = images.read({"png": make_png(1, 16)}, a), moments.read(members, b)
        assert of_moments.view.mirrored == of_image.view.mirrored
        assert of_moments.moments is not None
        assert torch.equal(of_moments.moments, mirrored if of_image.view.mirrored else plain)
        assert of_moments.image.size == 0
        assert a.random() == b.random(), "what is drawn next must be the same"
        seen_mirrored.append(of_image.view.mirrored)
    assert 5 < sum(seen_mirrored) < 35
    assert replace(of_moments.view, mirrored=False) == view


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_moments_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    moments = torch.randn(8, 4, 4).to(dtype)
    found = MomentsReader(8, flip=False).read({MOMENTS: member_of(moments, None, middle(8, 8, 8))}, generator(0))
    assert found.moments is not None and found.moments.dtype == dtype
    assert torch.equal(found.moments, moments)


def test_what_cannot_be_read_is_a_bad_sample() -> None:
    reader = MomentsReader(8, flip=True)
    whole = member_of(torch.zeros(2, 4, 4).half(), None, middle(8, 8, 8))
    for members, reason in (
        ({BAD: b"animated"}, "animated"),
        ({BAD: b"<script>"}, "undecodable"),
        ({"png": make_png(1)}, "no_image"),
        ({MOMENTS: whole[:-3]}, "undecodable"),
        ({MOMENTS: b""}, "undecodable"),
    ):
        with pytest.raises(BadSample) as found:
            reader.read(members, generator(0))
        assert found.value.reason == reason


def test_the_key_is_kept_with_the_folder_and_names_its_shards(tmp_path: Path) -> None:
    folder, storage = str(tmp_path), Storage()
    assert LatentsKey.read(folder, storage) is None
    KEY.write(folder, storage)
    found = LatentsKey.read(folder, storage)
    assert found == KEY and found.shard_name(3) == KEY.shard_name(3)
    others = [
        replace(KEY, first_stage="x"),
        replace(KEY, scale=None),
        replace(KEY, image_size=9),
        replace(KEY, reducing_gap=None),
        replace(KEY, mirrored=False),
        replace(KEY, precision="bf16"),
        replace(KEY, where={}),
        replace(KEY, samples="x"),
    ]
    assert len({key.digest for key in [KEY, *others]}) == 1 + len(others)


@pytest.mark.parametrize("content", ["[]", "{", '{"version": 2}', '{"version": 99}', '{"version": 2, "x": 2}'])
def test_a_key_that_cannot_be_understood_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / KEY_NAME).write_text(content)
    with pytest.raises(DataError, match=r"latents.json is no key of latents"):
        LatentsKey.read(str(tmp_path), Storage())
