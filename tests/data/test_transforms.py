import io
import json

import numpy as np
import pytest
from PIL import Image

from data.transforms import BadSample, choose_caption, decode_image, details_of


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def generator(number: int = 0) -> np.random.Generator:
    return np.random.default_rng(number)


GREEN = Image.new("RGB", (6, 4), (10, 200, 30))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_every_format_decodes_to_rgb(kind: str) -> None:
    pixels = decode_image(encode(GREEN, kind))
    assert pixels.shape == (4, 6, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - [10, 200, 30]).max() < 12


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(mode: str) -> None:
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0)).convert(mode)
    options = {"transparency": 0} if mode == "P" else {}
    if mode == "P":
        clear = Image.new("P", (4, 4), 0)
    assert (decode_image(encode(clear, "PNG", **options)) == 255).all()


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "I;16"])
def test_other_modes(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    grey = Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)) if mode == "I;16" else GREEN.convert(mode)
    pixels = decode_image(encode(grey, kind))
    assert pixels.shape[2] == 3
    if mode == "I;16":
        assert (pixels == 40000 >> 8).all()


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert decode_image(encode(GREEN, "JPEG", exif=exif.tobytes())).shape == (6, 4, 3)


def test_an_animation_is_a_fault() -> None:
    frames = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (0, 120, 250)]
    for kind in ("GIF", "WEBP", "PNG"):
        with pytest.raises(BadSample) as caught:
            decode_image(encode(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert caught.value.reason == "animated"


def test_too_many_pixels_are_refused_by_the_header_alone() -> None:
    bomb = encode(Image.new("L", (9000, 9000)), "PNG")
    with pytest.raises(BadSample) as caught:
        decode_image(bomb[:200], max_pixels=10_000)
    assert caught.value.reason == "too_many_pixels"


def test_truncated_and_undecodable() -> None:
    photo = encode(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)), "JPEG")
    for data, reason in [
        (photo[: len(photo) // 2], "truncated"),
        (b"no image", "undecodable"),
        (b"", "undecodable"),
    ]:
        with pytest.raises(BadSample) as caught:
            decode_image(data)
        assert caught.value.reason == reason


def test_other_formats_are_not_opened() -> None:
    with pytest.raises(BadSample, match="undecodable"):
        decode_image(encode(GREEN, "TIFF"))


def caption_of(members: dict[str, bytes], number: int = 0) -> str:
    return choose_caption(members, details_of(members), generator(number))


def test_caption_choice() -> None:
    several = json.dumps({"captions": ["a", " b ", "", 3], "caption": "d"}).encode()
    assert {caption_of({"json": several, "txt": b"c"}, n) for n in range(40)} == {"a", "b"}
    assert caption_of({"json": b'{"caption": "d"}', "txt": b" c\n"}) == "c"
    assert caption_of({"json": b'{"caption": "d"}'}) == "d"
    assert caption_of({"txt": b"  \n"}) == caption_of({}) == ""


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"txt": b"\xff\xfe"}, "not_utf8"),
        ({"json": b'"\xff"'}, "not_utf8"),
        ({"txt": b"a", "json": b"{"}, "undecodable"),
    ],
)
def test_bad_captions(members: dict[str, bytes], reason: str) -> None:
    with pytest.raises(BadSample) as caught:
        caption_of(members)
    assert caught.value.reason == reason
