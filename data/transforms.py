"""From the bytes of a sample to its picture, its details and its caption."""

import io
import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

Reason = Literal[
    "truncated",
    "corrupt",
    "changed",
    "missing",
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
_ON_THEIR_SIDE = (5, 6, 7, 8)
DEFAULT_MAX_PIXELS = 64_000_000
LARGEST_TEXT_BYTES = 1 << 20  # .json takes a hundred times as much when it is parsed


class BadSample(Exception):
    """A sample that cannot be used; `reason` is one of REASONS."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def decode_image(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode JPEG, PNG, WebP or GIF to uint8 RGB [H, W, 3], upright by its EXIF, transparency on white.

    Raises BadSample: "animated" for more than one frame, "too_many_pixels" above `max_pixels` (read from the
    header, before any pixel is decoded), "truncated", "undecodable".
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise BadSample("too_many_pixels", f"{image.width} x {image.height} is above {max_pixels}")
            if getattr(image, "is_animated", False):
                raise BadSample("animated")
            return _rgb(image)
    except BadSample:
        raise
    except Image.DecompressionBombError as error:
        raise BadSample("too_many_pixels", str(error)) from error
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files
        reason: Reason = "truncated" if "truncated" in str(error).lower() else "undecodable"
        raise BadSample(reason, f"{type(error).__name__}: {error}") from error


def size_of_image(data: bytes) -> tuple[int, int] | None:
    """Width and height of an image, upright by its EXIF, of which nothing is decoded; None where these bytes, which
    may be its first ones alone, don't tell."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            on_its_side = image.getexif().get(ExifTags.Base.Orientation) in _ON_THEIR_SIDE
            return (image.height, image.width) if on_its_side else (image.width, image.height)
    except Exception:  # Pillow's decoders raise a dozen kinds on damaged files
        return None


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.format == "JPEG" or "exif" in image.info:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":  # Pillow clips these where they should be scaled
        grey = (np.asarray(image, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"), dtype=np.uint8)


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


def image_bytes(members: Mapping[str, bytes]) -> bytes:
    """The image among a sample's members. Raises BadSample "no_image"."""
    for extension in IMAGE_EXTENSIONS:
        if extension in members:
            return members[extension]
    raise BadSample("no_image", f"has {', '.join(sorted(members)) or 'nothing'}")
