"""From the bytes of a sample to its picture, its details and its caption."""

import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

Reason = Literal[
    "truncated",
    "corrupt",
    "changed",
    "missing",
    "refused",
    "not_utf8",
    "undecodable",
    "no_caption",
    "no_label",
    "no_layout",
    "no_segmentation",
    "no_image",
    "animated",
    "too_many_pixels",
    "too_many_bytes",
    "too_small",
]
REASONS: tuple[str, ...] = get_args(Reason)
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif")
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")  # the other decoders of Pillow are not for untrusted files
_JPEG = ("JPEG", "MPO")  # the second is of cameras that append other views of the scene
_UPRIGHT, _TURNED, _ON_THEIR_SIDE = 1, range(2, 9), range(5, 9)
_COLOURS = ("YCbCr", "Gray", "RGB")
_START, _SCAN, _NOTES = b"\xff\xd8", 0xDA, 0xE1  # markers of JPEG; EXIF and XMP stand in segments of notes
_REDUCTIONS = (8, 4, 2)  # that libjpeg has and Pillow asks for
DEFAULT_MAX_PIXELS = 64_000_000
_LONGEST_DETAIL = 200
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
LARGEST_TEXT_BYTES = 1 << 20  # .json takes a hundred times as much when it is parsed


class BadSample(Exception):
    """A sample that cannot be used; `reason` is one of REASONS.

    detail: in words, perhaps a library's about somebody else's file; of it one line of at most 200 characters is kept.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        self.reason = reason
        self.detail = _one_line(detail)
        super().__init__(f"{reason}: {self.detail}" if detail else reason)


def _one_line(text: str) -> str:
    """What can be printed anywhere, without addresses in memory, which differ from process to process."""
    text = _ADDRESS.sub("", text[: _LONGEST_DETAIL * 4])
    escaped = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    return escaped if len(escaped) <= _LONGEST_DETAIL else f"{escaped[: _LONGEST_DETAIL - 1]}…"


class EncodedImage:
    """A JPEG, PNG, WebP or GIF of which the header alone was read.

    data: its bytes. max_pixels: more are refused. extension: that it came under. An animation gives its first frame
    where that is the extension of its own format (.gif, .webp, .png); under another one, or none, it is refused, as
    somebody wanted a still picture. height, width: in pixels, upright by its EXIF.

    Raises BadSample: "animated", "too_many_pixels", "undecodable".
    """

    def __init__(self, data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS, extension: str = "") -> None:
        self._data = data
        self._orientation = _UPRIGHT
        size = _size_of_plain_jpeg(data)
        self._is_plain = size is not None
        with _faults():
            width, height = size or self._image.size
            if width * height > max_pixels:
                raise BadSample("too_many_pixels", f"{width} x {height} is above {max_pixels}")
            if size is None:
                moves = self._image.format not in _JPEG and getattr(self._image, "is_animated", False)
                if moves and extension != str(self._image.format).lower():
                    raise BadSample("animated")
                self._orientation = _orientation(self._image)
        self.width, self.height = (height, width) if self._orientation in _ON_THEIR_SIDE else (width, height)

    def reduction(self, spare: float) -> int:
        """The largest one that `decode` can make and that isn't above `spare`: 8, 4, 2 or 1."""
        return next(n for n in (*_REDUCTIONS, 1) if n <= max(spare, 1) and self._reduces(n))

    def decode(self, reduction: int = 1) -> NDArray[np.uint8]:
        """The picture as uint8 RGB [H, W, 3], upright, transparency on white; once, as the data are dropped.

        reduction: one that `reduction` gave; each pixel stands for a square of so many, and where a side isn't a
        multiple of it, the last one reaches beyond the edge. Of a JPEG fewer frequencies are decoded then, of which
        it consists anyway. Raises BadSample: "truncated", "undecodable".
        """
        if (pixels := self._by_libjpeg(reduction)) is not None:
            return pixels
        with _faults(), self._image as image:
            if reduction > 1:
                image.draft(None, (image.width // reduction, image.height // reduction))
            return _rgb(ImageOps.exif_transpose(image) if self._orientation != _UPRIGHT else image)

    def _by_libjpeg(self, reduction: int) -> NDArray[np.uint8] | None:
        """The same of a plain and sound JPEG, in half the time, as Pillow copies what libjpeg gives; else None."""
        if not self._is_plain:
            return None
        height, width = (-(-side // reduction) for side in (self.height, self.width))
        try:
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
                self._data, min_height=height, min_width=width, min_factor=reduction
            )
        except ValueError:  # Pillow knows what can be made of it, and if nothing, why
            return None
        return pixels if pixels.shape == (height, width, 3) else None

    @cached_property
    def _image(self) -> Image.Image:
        """By Pillow, which knows every kind, and what is wrong with one."""
        return Image.open(io.BytesIO(self._data), formats=_FORMATS)

    def _reduces(self, reduction: int) -> bool:
        if reduction == 1 or self._is_plain:
            return True
        if self._image.format not in _JPEG or min(self._image.size) < reduction:
            return False
        # turned over, a last pixel that reaches beyond the edge would be the first one
        return self._orientation == _UPRIGHT or not any(side % reduction for side in self._image.size)


def decode_image(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS, extension: str = "") -> NDArray[np.uint8]:
    """Decode JPEG, PNG, WebP or GIF to uint8 RGB [H, W, 3], upright by its EXIF, transparency on white.

    extension: see EncodedImage. Raises BadSample: "animated", "too_many_pixels" above `max_pixels` (read from the
    header, before any pixel is decoded), "truncated", "undecodable".
    """
    return EncodedImage(data, max_pixels, extension).decode()


def size_of_image(data: bytes) -> tuple[int, int] | None:
    """Width and height of an image, upright by its EXIF, of which nothing is decoded; None where these bytes, which
    may be its first ones alone, don't tell."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            on_its_side = _orientation(image) in _ON_THEIR_SIDE
            return (image.height, image.width) if on_its_side else (image.width, image.height)
    except Exception:  # Pillow's decoders raise a dozen kinds on damaged files
        return None


def _size_of_plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG of three colours or grey that nothing in it says to turn; None of any other image."""
    if not data.startswith(_START) or _may_be_turned(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    # of a smaller one several of libjpeg's scales have the same size
    return (width, height) if colours in _COLOURS and min(width, height) >= _REDUCTIONS[0] else None


def _may_be_turned(data: bytes) -> bool:
    """Whether a JPEG has EXIF, or XMP that names an orientation, or segments that can't be followed to its pixels."""
    at = len(_START)
    while len(data) >= at + 4 and data[at] == 0xFF:
        if data[at + 1] == _SCAN:
            return False
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == _NOTES and (data.startswith(b"Exif\0", at + 4) or b"Orientation" in data[at:end]):
            return True
        at = end
    return True


@contextmanager
def _faults() -> Iterator[None]:
    """What goes wrong within becomes a BadSample."""
    try:
        yield
    except BadSample:
        raise
    except Image.DecompressionBombError as error:
        raise BadSample("too_many_pixels", str(error)) from error
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files
        reason: Reason = "truncated" if "truncated" in str(error).lower() else "undecodable"
        raise BadSample(reason, f"{type(error).__name__}: {error}") from error


def _orientation(image: Image.Image) -> int:
    """By EXIF; of a PNG what stands before its pixels, as nothing is decoded for it."""
    if image.format not in _JPEG and "exif" not in image.info:
        return _UPRIGHT
    found = image.getexif().get(ExifTags.Base.Orientation)
    return found if isinstance(found, int) and found in _TURNED else _UPRIGHT


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16") or image.mode == "I":  # Pillow clips these where they should be scaled
        levels = np.asarray(image, dtype=np.int64)
        grey = (levels >> 8).clip(0, 255).astype(np.uint8)
        if "transparency" in image.info:  # one level is
            grey[levels == image.info["transparency"]] = 255
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)


def details_of(members: Mapping[str, bytes]) -> dict[str, Any]:
    """What the sample's .json says; {} without one. Raises BadSample: "not_utf8", "undecodable", "too_many_bytes"."""
    text = text_of(members, "json")
    try:
        parsed = json.loads(text) if "json" in members else {}
    except (ValueError, RecursionError) as error:
        raise BadSample("undecodable", f"json: {error}") from error
    return parsed if isinstance(parsed, dict) else {}


def text_of(members: Mapping[str, bytes], extension: str) -> str:
    """A member as text, "" where there is none. Raises BadSample "not_utf8", and "too_many_bytes" above a megabyte."""
    data = members.get(extension, b"")
    if len(data) > LARGEST_TEXT_BYTES:
        raise BadSample("too_many_bytes", f"{extension}: {len(data)} are above {LARGEST_TEXT_BYTES}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadSample("not_utf8", str(error)) from error


def choose_caption(members: Mapping[str, bytes], details: Mapping[str, Any], generator: np.random.Generator) -> str:
    """One of the details' "captions", else the sample's .txt, else the details' "caption", else "".

    Raises BadSample: "not_utf8", "too_many_bytes".
    """
    text = text_of(members, "txt")
    several = details.get("captions")
    choices = [c.strip() for c in several if isinstance(c, str) and c.strip()] if isinstance(several, list) else []
    chosen = choices[int(generator.integers(len(choices)))] if choices else text.strip()
    chosen = chosen or str(details.get("caption") or "").strip()
    return chosen.encode(errors="replace").decode()  # JSON can hold halves of characters, which tokenizers refuse


def image_of(members: Mapping[str, bytes]) -> tuple[str, bytes]:
    """The extension and the bytes of the image among a sample's members. Raises BadSample "no_image"."""
    for extension in IMAGE_EXTENSIONS:
        if extension in members:
            return extension, members[extension]
    raise BadSample("no_image", f"has {', '.join(sorted(members)) or 'nothing'}")
