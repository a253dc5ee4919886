import math
import random

import pytest

from data.buckets import Buckets
from data.errors import DataError


def test_the_sizes_that_others_use() -> None:
    """Those of NovelAI and SDXL around 1024 x 1024 with steps of 64 up to 7:4."""
    tall = [(768, 1344), (832, 1216), (896, 1152), (960, 1088)]
    assert Buckets(1024, 64, 2.0).sizes == (*tall, (1024, 1024), *((height, width) for width, height in tall[::-1]))


@pytest.mark.parametrize(
    ("image_size", "step", "aspect"), [(512, 64, 2.0), (256, 32, 1.9), (1024, 64, 4.0), (96, 8, 3)]
)
def test_sizes_have_the_pixels_of_the_square(image_size: int, step: int, aspect: float) -> None:
    sizes = Buckets(image_size, step, aspect).sizes
    assert (image_size, image_size) in sizes
    assert {(height, width) for width, height in sizes} == set(sizes)
    for width, height in sizes:
        assert width % step == height % step == 0 and 1 / aspect <= width / height <= aspect
        assert width * height <= image_size**2 < min((width + step) * height, width * (height + step))
    assert [width / height for width, height in sizes] == sorted(width / height for width, height in sizes)


def test_pictures_go_to_the_nearest_aspect() -> None:
    buckets = Buckets(512, 64, 2.5)
    choose = random.Random(0)
    pictures = [(choose.randint(1, 3000), choose.randint(1, 3000)) for _ in range(2000)] + [(70000, 3), (1, 10**6)]

    def distance(number: int, width: int, height: int) -> float:
        own = buckets.sizes[number]
        return abs(math.log(width / height) - math.log(own[0] / own[1]))

    numbers = buckets.numbers(pictures)
    assert len(set(numbers.tolist())) == len(buckets.sizes)
    for number, (width, height) in zip(numbers.tolist(), pictures, strict=True):
        nearest = min(distance(other, width, height) for other in range(len(buckets.sizes)))
        assert distance(number, width, height) == pytest.approx(nearest, abs=1e-9)


def test_a_picture_of_no_known_size_is_a_square() -> None:
    buckets = Buckets(512, 64, 2.0)
    assert [buckets.sizes[number] for number in buckets.numbers([None, (640, 384), None])] == [
        (512, 512),
        (640, 384),
        (512, 512),
    ]
    assert buckets.numbers([]).tolist() == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((512, 60, 2.0), "step=60 must divide image_size=512"),
        ((512, 0, 2.0), "step=0 must divide"),
        ((512, 64, 1.0), "largest_aspect=1.0 must be above 1"),
        ((512, 64, float("nan")), "largest_aspect=nan must be above 1"),
        ((512, 64, 1.1), "make 1 sizes"),
        ((4096, 1, 8.0), "choose another step or aspect"),
    ],
)
def test_sizes_that_cannot_be(arguments: tuple[int, int, float], says: str) -> None:
    with pytest.raises(DataError, match=says):
        Buckets(*arguments)
