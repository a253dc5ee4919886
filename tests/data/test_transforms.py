import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from data.transforms import BadSample, EncodedImage, choose_caption, decode_image, details_of, size_of_image


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def generator(number: int = 0) -> np.random.Generator:
    return np.random.default_rng(number)


GREEN = Image.new("RGB", (6, 4), (10, 200, 30))
PATCHES = np.zeros((16, 24, 3), np.uint8)
PATCHES[:8, :8], PATCHES[:8, 8:], PATCHES[8:, :8], PATCHES[8:, 8:] = (230, 40, 20), (20, 200, 60), (30, 60, 220), 255


def png(pixels: np.ndarray, colour_type: int, more: bytes = b"") -> bytes:
    """A PNG of 16 bits a channel, [H, W, C], which Pillow can't write in colour."""

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def chunk(name: bytes, content: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def deep(*more: int) -> np.ndarray:
    """The patches with 16 bits, of which the lower ones are noise; with further channels of these values."""
    high = np.concatenate([PATCHES, np.full((*PATCHES.shape[:2], len(more)), more)], axis=2).astype(np.uint16)
    return (high << 8) + generator().integers(0, 256, high.shape).astype(np.uint16)


def inks() -> Image.Image:
    """The patches as cyan, magenta and yellow; Pillow writes them inverted, as Adobe's programs do."""
    return Image.fromarray(np.concatenate([255 - PATCHES, np.zeros((16, 24, 1), np.uint8)], axis=2), "CMYK")


def grey() -> np.ndarray:
    return np.repeat(np.arange(384, dtype=np.uint8).reshape(16, 24, 1), 3, axis=2)


COLOUR, EXACT = Image.fromarray(PATCHES), 0
FORMATS = {
    "JPEG": (encode(COLOUR, "JPEG", quality=100, subsampling=0), PATCHES, 6),
    "progressive JPEG": (encode(COLOUR, "JPEG", quality=100, subsampling=0, progressive=True), PATCHES, 6),
    "grey JPEG": (encode(Image.fromarray(grey()[:, :, 0]), "JPEG", quality=100), grey(), 2),
    "PNG": (encode(COLOUR, "PNG"), PATCHES, EXACT),
    "grey PNG": (encode(Image.fromarray(grey()[:, :, 0]), "PNG"), grey(), EXACT),
    "PNG of a palette": (encode(COLOUR.quantize(4), "PNG"), PATCHES, EXACT),
    "PNG of one bit": (encode(Image.fromarray(grey()[:, :, 0] > 127), "PNG"), (grey() > 127) * 255, EXACT),
    "PNG of 16 bits": (png(deep(), 2), PATCHES, EXACT),
    "PNG of 16 bits, opaque": (png(deep(255), 6), PATCHES, 1),
    "PNG of 16 bits, grey": (png(deep()[:, :, :1], 0), PATCHES[:, :, :1].repeat(3, 2), EXACT),
    "WebP": (encode(COLOUR, "WEBP", quality=100), PATCHES, 90),  # halves the resolution of colours
    "lossless WebP": (encode(COLOUR, "WEBP", lossless=True), PATCHES, EXACT),
    "GIF": (encode(COLOUR, "GIF"), PATCHES, EXACT),
    "JPEG of inks": (encode(inks(), "JPEG", quality=100, subsampling=0), PATCHES, 8),
}
"""By name: the bytes, the picture, and by how many levels a pixel may be off."""


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_decodes_to_rgb(name: str) -> None:
    data, expected, tolerance = FORMATS[name]
    pixels = decode_image(data)
    assert pixels.shape == (16, 24, 3) and pixels.dtype == np.uint8
    off = np.abs(pixels.astype(int) - expected)
    assert off.max() <= tolerance and off.mean() <= tolerance / 8
    assert size_of_image(data) == (24, 16)


def half_clear(mode: str) -> Image.Image:
    """Red without transparency on the left, anything with all of it on the right."""
    red = Image.new("RGBA", (8, 4), (200, 0, 0, 255))
    red.paste((0, 90, 0, 0), (4, 0, 8, 4))
    return red.convert(mode)


def of_palette() -> Image.Image:
    """The same, where one of the palette's colours is transparent."""
    image = Image.new("P", (8, 4), 1)
    image.putpalette([0, 90, 0, 200, 0, 0])
    image.paste(0, (4, 0, 8, 4))
    return image


@pytest.mark.parametrize(
    ("data", "left"),
    [
        (encode(half_clear("RGBA"), "PNG"), (200, 0, 0)),
        (encode(half_clear("RGBA"), "WEBP", lossless=True), (200, 0, 0)),
        (encode(half_clear("LA"), "PNG"), (60, 60, 60)),
        (encode(of_palette(), "PNG", transparency=0), (200, 0, 0)),
        (encode(of_palette(), "GIF", transparency=0), (200, 0, 0)),
        (
            png(np.array([[[51401]] * 4 + [[51400]] * 4] * 4), 0, chunk(b"tRNS", struct.pack(">H", 51400))),
            (200, 200, 200),
        ),
        (png(np.array([[[51400, 0, 0, 65535]] * 4 + [[0, 23040, 0, 0]] * 4] * 4), 6), (200, 0, 0)),
    ],
)
def test_transparency_lies_on_white(data: bytes, left: tuple[int, int, int]) -> None:
    pixels = decode_image(data)
    assert (pixels[:, :4] == left).all() and (pixels[:, 4:] == 255).all()


def test_what_libraries_say_of_bad_files_becomes_one_short_line() -> None:
    said = f"<_io.BytesIO object at 0x7ff1> \x1b[31m\nü\udc80{'x' * 10**6}"
    told = BadSample("undecodable", said).detail
    assert told.startswith(r"<_io.BytesIO object> \x1b[31m\nü\udc80xxx") and len(told) == 200
    assert BadSample("animated").detail == ""


def test_half_transparent_is_half_white() -> None:
    veil = Image.new("RGBA", (4, 4), (0, 0, 100, 51))
    assert np.abs(decode_image(encode(veil, "PNG")).astype(int) - [204, 204, 224]).max() <= 1


UPRIGHT = Image.fromarray(np.kron(np.arange(10, 250, 40, dtype=np.uint8).reshape(2, 3), np.ones((16, 16), np.uint8)))
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""By the orientation of EXIF: how the camera's picture differs from the upright one."""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [None, 1, *TURNED, 9])
def test_pictures_are_upright_by_their_exif(kind: str, orientation: int | None) -> None:
    camera, exif = UPRIGHT, Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
        camera = UPRIGHT.transpose(TURNED[orientation]) if orientation in TURNED else UPRIGHT
    data = encode(camera, kind, exif=exif.tobytes(), **({"lossless": True} if kind == "WEBP" else {"quality": 100}))
    assert np.abs(decode_image(data).astype(int)[:, :, 0] - np.asarray(UPRIGHT)).max() <= 2
    assert size_of_image(data) == (48, 32)
    if kind == "JPEG":
        picture = EncodedImage(data)
        assert picture.reduction(4) == 4
        assert np.abs(picture.decode(4).astype(int)[:, :, 0] - np.asarray(UPRIGHT)[::4, ::4]).max() <= 2


def test_an_orientation_that_only_xmp_names_counts_as_well() -> None:
    note = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    plain = encode(UPRIGHT.transpose(TURNED[6]), "JPEG", quality=100)
    noted = plain[:2] + b"\xff\xe1" + (len(note) + 2).to_bytes(2, "big") + note + plain[2:]
    assert np.abs(decode_image(noted).astype(int)[:, :, 0] - np.asarray(UPRIGHT)).max() <= 2
    assert decode_image(plain).shape == (48, 32, 3)


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (120, 0, 250)]
    options = {"lossless": True} if kind == "WEBP" else {}
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame_under_its_own_name_and_else_a_fault(kind: str) -> None:
    data = animation(kind)
    assert (decode_image(data, extension=kind.lower()) == (120, 0, 0)).all()
    for extension in {"", "jpg", "jpeg", "png", "webp", "gif"} - {kind.lower()}:
        with pytest.raises(BadSample) as caught:
            decode_image(data, extension=extension)
        assert caught.value.reason == "animated"


def test_several_views_of_a_camera_are_no_animation() -> None:
    """Cameras append previews, or the other eye's view, to a JPEG; the first picture is the photograph."""
    data = encode(COLOUR, "MPO", save_all=True, append_images=[COLOUR.rotate(180)], quality=100, subsampling=0)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "MPO" and image.n_frames == 2
    assert np.abs(decode_image(data, extension="jpg").astype(int) - PATCHES).max() <= 6
    assert EncodedImage(data).decode(2).shape == (8, 12, 3)


def noise(mode: str, width: int, height: int) -> Image.Image:
    """Squares of all colours, of which every pixel is of another brightness."""
    squares = generator().integers(0, 200, (-(-height // 5), -(-width // 5), 3)).repeat(5, 0).repeat(5, 1)
    pixels = squares[:height, :width] + generator(1).integers(0, 56, (height, width, 1))
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def by_pillow(data: bytes, reduction: int) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (image.width // reduction, image.height // reduction))
        return np.array(image.convert("RGB"))


@pytest.mark.parametrize("size", [(64, 48), (65, 47), (8, 9), (131, 8)])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        *(("RGB", {"subsampling": subsampling, "quality": 80}) for subsampling in ("4:4:4", "4:2:2", "4:2:0")),
        ("RGB", {"progressive": True, "quality": 30}),
        ("RGB", {"restart_marker_rows": 1}),
        ("RGB", {"keep_rgb": True}),
        ("L", {"quality": 80}),
        ("CMYK", {"quality": 80}),
    ],
)
def test_jpegs_are_decoded_as_pillow_does_whole_and_reduced(
    mode: str, options: dict[str, object], size: tuple[int, int]
) -> None:
    data = encode(noise(mode, *size), "JPEG", **options)
    for reduction in (1, 2, 4, 8):
        picture = EncodedImage(data)
        assert (picture.width, picture.height) == size
        assert picture.reduction(reduction) == reduction
        assert np.array_equal(picture.decode(reduction), by_pillow(data, reduction))


@pytest.mark.parametrize("size", [(7, 5), (3, 64), (1, 1)])
def test_tiny_jpegs_are_decoded_as_pillow_does(size: tuple[int, int]) -> None:
    data = encode(noise("RGB", *size), "JPEG")
    for asked in (1, 2, 4, 8):
        reduction = EncodedImage(data).reduction(asked)
        assert np.array_equal(EncodedImage(data).decode(reduction), by_pillow(data, reduction))


def test_a_jpeg_with_something_wrong_that_does_no_harm_is_as_pillow_has_it() -> None:
    """libjpeg warns of bytes between its markers."""
    data = encode(noise("RGB", 64, 48), "JPEG")
    odd = data[:-2] + bytes(20) + data[-2:]
    assert np.array_equal(decode_image(odd), by_pillow(odd, 1))


def test_too_many_pixels_are_refused_by_the_header_alone() -> None:
    large = Image.new("L", (9000, 9000))
    for bomb in (encode(large, "PNG")[:200], encode(large, "JPEG")[:700]):
        with pytest.raises(BadSample) as caught:
            decode_image(bomb, max_pixels=10_000)
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
