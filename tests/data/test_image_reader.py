"""What a model sees of a picture, whole or decoded at reduced size."""

from __future__ import annotations

import io

import numpy as np
import pytest
from made_files import make_png
from numpy.typing import NDArray
from PIL import ExifTags, Image

from data.errors import DataError
from data.pictures import ImageReader, Seen, scaled
from data.transforms import BadSample, EncodedImage, decode_image
from data.view import View, chosen

LANCZOS = Image.Resampling.LANCZOS
GAP = 1.5


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """Clouds whose spectrum falls with frequency as that of photographs does, with edges of things in front of them."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / max(width, height)
    spectrum = np.fft.rfft2(random.standard_normal((3, height, width))) / frequency
    clouds = np.fft.irfft2(spectrum, (height, width)).transpose(1, 2, 0)
    clouds = 128 + 45 * clouds / clouds.std()
    for _ in range(12):
        x, y, w, h = random.integers(0, (width, height, width // 4, height // 4))
        clouds[y : y + h, x : x + w] = 0.5 * clouds[y : y + h, x : x + w] + random.uniform(0, 128, 3)
    return Image.fromarray(clouds.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def seen(
    data: bytes, gap: float | None = GAP, side: int = 64, scaled_side: int | None = None, **options: object
) -> Seen:
    reader = ImageReader(side, scaled_side or side, flip=False, smallest_side=1, max_pixels=10**7, reducing_gap=gap)
    kind = "jpg" if data[:2] == b"\xff\xd8" else "png"
    return scaled([reader.read({kind: data}, np.random.default_rng(5), **options)])[0]  # type: ignore[arg-type]


def reference(data: bytes, view: View, shape: tuple[int, int] = (64, 64)) -> NDArray[np.uint8]:
    """The same view by Pillow: of the whole picture, decoded and cut, then scaled."""
    left, top, right, bottom = map(int, view.box)
    part = Image.fromarray(decode_image(data)[top:bottom, left:right])
    return np.asarray(part.resize((shape[1], shape[0]), LANCZOS))


def psnr(image: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(-10 * np.log10(np.mean((image.astype(float) - other) ** 2) / 255**2))


@pytest.mark.parametrize("size", [(224, 224), (129, 67), (64, 64), (40, 31)])
def test_without_a_gap_a_view_is_pillows_exactly(size: tuple[int, int]) -> None:
    data = jpeg(scene(*size))
    found = seen(data, gap=None)
    view = chosen(size[1], size[0], 64, 64, False, np.random.default_rng(5))
    assert found.view == view
    expected = Image.fromarray(decode_image(data)).resize((64, 64), LANCZOS, box=view.box)
    assert (found.image == np.asarray(expected)).all()


@pytest.mark.parametrize("gap", [None, GAP, 1.0])
def test_a_picture_of_the_wanted_size_is_untouched(gap: float | None) -> None:
    for data in (make_png(3, 64), jpeg(scene(64, 64))):
        assert (seen(data, gap).image == decode_image(data)).all()


@pytest.mark.parametrize("size", [(56, 56), (80, 64), (90, 91), (189, 66)])
def test_where_nothing_is_reduced_a_pixel_is_within_two_levels_of_pillows(size: tuple[int, int]) -> None:
    for data in (jpeg(scene(*size)), jpeg(scene(*size), subsampling=0, quality=100)):
        found = seen(data, gap=2.9)
        off = np.abs(found.image.astype(int) - reference(data, found.view))
        assert off.max() <= 2 and off.mean() < 0.03


def test_a_small_picture_keeps_its_view_exactly() -> None:
    data = jpeg(scene(45, 31))
    assert (seen(data).image == seen(data, None).image).all() and seen(data).view == seen(data, None).view


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize(("size", "reduction"), [((256, 192), 2), ((257, 195), 2), ((515, 391), 4), ((801, 1155), 8)])
def test_a_reduced_picture_is_close_to_the_whole_one(size: tuple[int, int], reduction: int, subsampling: int) -> None:
    """The bound: 35 dB, and 3.5 levels on average, of detail that is harder than a photograph's."""
    data = jpeg(scene(*size), subsampling=subsampling)
    found = seen(data)
    assert EncodedImage(data).reduction(found.view.spare((64, 64)) / GAP) == reduction
    expected = reference(data, found.view)
    assert psnr(found.image, expected) > 35
    assert np.abs(found.image.astype(int) - expected).mean() < 3.5


@pytest.mark.parametrize("shape", [None, (48, 80)])
@pytest.mark.parametrize("scaled_side", [64, 90])
@pytest.mark.parametrize("size", [(511, 390), (387, 513), (300, 303)])
def test_a_view_of_a_reduced_picture_is_where_it_says(
    size: tuple[int, int], scaled_side: int, shape: tuple[int, int] | None
) -> None:
    """A shift by one pixel, either way, fits worse: nothing is lost between the picture and the reduced one."""
    data, wanted = jpeg(scene(*size)), shape or (64, 64)
    found = seen(data, scaled_side=scaled_side, shape=shape)
    exact = seen(data, None, scaled_side=scaled_side, shape=shape).view
    left, top, right, bottom = found.view.box
    assert np.abs(np.subtract(found.view.box, exact.box)).max() <= 4  # half of a pixel that stands for 8 x 8
    assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
    assert found.image.shape == (*wanted, 3)
    here = psnr(found.image, reference(data, found.view, wanted))
    for x, y in ((-2, 0), (2, 0), (0, -2), (0, 2)):
        box = left + x, top + y, right + x, bottom + y
        if min(box) >= 0 and box[2] <= size[0] and box[3] <= size[1]:
            assert psnr(found.image, reference(data, View(size[1], size[0], box), wanted)) < here


@pytest.mark.parametrize("orientation", [3, 6, 7])
@pytest.mark.parametrize("size", [(256, 320), (257, 321)])
def test_a_turned_picture_is_seen_upright_whether_reduced_or_not(size: tuple[int, int], orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = jpeg(scene(*size), exif=exif.tobytes())
    assert EncodedImage(data).reduction(2) == (2 if size[0] % 2 == 0 else 1)
    found = seen(data)
    assert (found.view.width, found.view.height) == (size[::-1] if orientation > 4 else size)
    assert psnr(found.image, reference(data, found.view)) > 30


def test_mirrored_is_the_same_view_from_right_to_left() -> None:
    data = jpeg(scene(400, 300))
    reader = ImageReader(64, 64, flip=True, smallest_side=1, max_pixels=10**7, reducing_gap=GAP)
    looks = scaled([reader.read({"jpg": data}, np.random.default_rng(n)) for n in range(20)])
    ways = {look.view.mirrored: look for look in looks}
    assert (ways[True].image[:, ::-1] == ways[False].image).all() and ways[True].view.box == ways[False].view.box


def test_scaled_together_they_are_what_each_is_alone() -> None:
    looks = [
        ImageReader(64, 64, True, 1, 10**7, GAP).read({"jpg": jpeg(scene(*size, seed=n))}, np.random.default_rng(n))
        for n, size in enumerate([(80, 80), (91, 80), (60, 60), (64, 64), (1300, 1200), *[(80, 90)] * 17, (300, 200)])
    ]
    waiting = [look.scaled_to is not None for look in looks]
    assert waiting == [True] * 3 + [False] + [True] * 19, "of the wanted size already"
    assert len({look.image.shape for look in looks}) > 3
    for together, look in zip(scaled(looks), looks, strict=True):
        (alone,) = scaled([look])
        assert together.image.shape == (64, 64, 3) and together.scaled_to is None and together.view == look.view
        assert together.image.tobytes() == alone.image.tobytes()


def test_a_large_picture_waits_for_no_other() -> None:
    look = ImageReader(512, 512, False, 1, 10**7, GAP).read({"jpg": jpeg(scene(700, 640))}, np.random.default_rng(0))
    assert look.scaled_to is None and look.image.shape == (512, 512, 3)


def test_only_jpeg_is_reduced_and_never_below_the_gap() -> None:
    picture = EncodedImage(jpeg(scene(64, 48)))
    assert [picture.reduction(spare) for spare in (0.3, 1, 1.99, 2, 3.9, 4, 7.9, 8, 100)] == [1, 1, 1, 2, 2, 4, 4, 8, 8]
    assert EncodedImage(make_png(0, 64)).reduction(8) == 1
    for gap in (0.5, float("nan")):
        with pytest.raises(DataError, match="must be 1 or more, or null"):
            seen(make_png(0), gap)


def test_bad_pictures_are_as_bad_when_reduced() -> None:
    data = jpeg(scene(400, 300))
    for damaged, reason in (
        (data[: len(data) // 2], "truncated"),
        (b"?", "undecodable"),
        (b"", "undecodable"),
    ):
        found = set()
        for gap in (None, GAP):
            with pytest.raises(BadSample) as caught:
                ImageReader(64, 64, False, 1, 10**7, gap).read({"jpg": damaged}, np.random.default_rng(0))
            found.add(caught.value.reason)
        assert found == {reason}
    with pytest.raises(BadSample, match="too_small"):
        ImageReader(64, 64, False, 301, 10**7, GAP).read({"jpg": data}, np.random.default_rng(0))
    with pytest.raises(BadSample, match="too_many_pixels"):
        ImageReader(64, 64, False, 1, 400 * 300 - 1, GAP).read({"jpg": data}, np.random.default_rng(0))
