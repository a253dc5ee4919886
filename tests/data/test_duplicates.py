import io

import numpy as np
import pytest
from PIL import Image

from data.duplicates import earlier_ones, exact_duplicates, near_duplicates, perceptual_hash
from data.errors import DataError
from data.survey import Criteria


def photograph(number: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    coarse = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def differing(a: Image.Image, b: Image.Image) -> int:
    return (perceptual_hash(np.asarray(a)) ^ perceptual_hash(np.asarray(b))).bit_count()


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


@pytest.mark.parametrize("number", range(5))
def test_a_picture_stays_itself_when_scaled_encoded_or_brightened(number: int) -> None:
    image = photograph(number)
    assert differing(image, jpeg(image, 40)) <= 4
    assert differing(image, image.resize((80, 60), Image.Resampling.LANCZOS)) <= 4
    assert differing(image, image.point(lambda value: value * 0.8 + 10)) <= 4


def test_others_are_far_away() -> None:
    hashes = [perceptual_hash(np.asarray(photograph(number))) for number in range(40)]
    far = [(a ^ b).bit_count() for n, a in enumerate(hashes) for b in hashes[:n]]
    assert min(far) > 10 and 28 < np.mean(far) < 36


def test_flat_pictures_are_alike() -> None:
    assert {perceptual_hash(np.full((20, 30, 3), value, np.uint8)) for value in (0, 127, 255)} == {0}


def test_of_the_same_bytes_the_first_is_kept() -> None:
    digests = np.array([[5, 1], [1, 5], [5, 2], [0, 0]], dtype=np.uint64)[[0, 1, 0, 2, 1, 3, 3]]
    assert exact_duplicates(digests).tolist() == [False, False, True, False, True, False, True]
    assert exact_duplicates(digests[:1]).tolist() == [False] and exact_duplicates(digests[:0]).tolist() == []


def test_earlier_ones_are_counted() -> None:
    values = np.random.default_rng(1).integers(0, 30, 200, dtype=np.uint64)
    counted = [int((values[:place] == value).sum()) for place, value in enumerate(values)]
    assert earlier_ones(values).tolist() == counted
    assert earlier_ones(values[:0]).tolist() == []


@pytest.mark.parametrize("bits", range(8))
def test_near_duplicates_are_those_that_comparing_all_finds(bits: int) -> None:
    generator = np.random.default_rng(bits)
    centres = generator.integers(0, 2**63, 20, dtype=np.uint64)
    flips = [sum(1 << int(b) for b in generator.choice(64, int(generator.integers(0, 9)), False)) for _ in range(300)]
    hashes = np.array([int(centres[n % 20]) ^ flip for n, flip in enumerate(flips)], dtype=np.uint64)
    kept: list[int] = []
    expected = []
    for value in hashes.tolist():
        alike = any((value ^ other).bit_count() <= bits for other in kept)
        expected.append(alike)
        if not alike:
            kept.append(value)
    assert near_duplicates(hashes, bits).tolist() == expected
    assert 0 < sum(expected) < 300 or bits == 0


def test_criteria_that_cant_be() -> None:
    for wrong, says in (({"smallest_side": 0}, "at least 1 pixel"), ({"drop_similar": 8}, "0 to 7 bits")):
        with pytest.raises(DataError, match=says):
            Criteria(**wrong)
