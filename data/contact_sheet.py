"""One self-contained page to look at a data set by: some dozens of its samples, counts, sizes, licence."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data.sources import Sample
from data.transforms import decode_image

_SHOWN = 60
_SIDE = 256  # pixels of a thumbnail's longer side
_COLOURS = ("#e4572e", "#2e86e4", "#3fa34d", "#b35bd1", "#e0a526", "#18a999")
_LAID_OVER = 0.55


def evenly(positions: Mapping[str, NDArray[np.int64]], shown: int = _SHOWN) -> list[tuple[str, int]]:
    """Split and position of samples for the sheet: of each split as many as it has of all, at least four, evenly."""
    total = sum(map(len, positions.values()))
    chosen: list[tuple[str, int]] = []
    for split, found in positions.items():
        count = min(len(found), max(4, shown * len(found) // max(total, 1)))
        places = np.linspace(0, len(found), count, endpoint=False).astype(np.int64)
        chosen += [(split, position) for position in found[places].tolist()]
    return chosen


def contact_sheet(manifest: Mapping[str, Any], samples: Sequence[tuple[str, Sample]]) -> bytes:
    """The page, HTML. manifest: as `data.prepare` writes it. samples: with the split of each."""
    import jinja2

    template = resources.files("data").joinpath("templates/contact_sheet.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(template).render(
        manifest=manifest,
        total=sum(split["samples"] for split in manifest["splits"].values()),
        bytes=sum(split["bytes"] for split in manifest["splits"].values()),
        settings=json.dumps(manifest["settings"], indent=1, ensure_ascii=False),
        cards=[_card(split, sample) for split, sample in samples],
    )
    return page.encode(errors="replace")


def _card(split: str, sample: Sample) -> dict[str, object]:
    picture = decode_image(sample.image, extension=sample.extension)
    captions = sample.metadata.get("captions")
    others = captions[1:] if isinstance(captions, list) else []
    hidden = ("captions", "objects")
    return {
        "split": split,
        "key": sample.key,
        "size": f"{picture.shape[1]} × {picture.shape[0]} {sample.extension}",
        "caption": sample.caption,
        "others": [str(caption) for caption in others],
        "metadata": {name: _brief(value) for name, value in sample.metadata.items() if name not in hidden},
        "pictures": [_inline(shown) for shown in _thumbnails(picture, sample)],
    }


def _thumbnails(picture: NDArray[np.uint8], sample: Sample) -> list[Image.Image]:
    """The picture with its boxes drawn in, and, where it has a map of classes, with that laid over it."""
    image = Image.fromarray(picture)
    scale = min(1.0, _SIDE / max(image.size))
    small = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(small)
    for number, (told, edges) in enumerate(_boxes(sample.metadata)):
        colour = _COLOURS[number % len(_COLOURS)]
        box = [edge * scale for edge in edges]
        draw.rectangle(box, outline=colour, width=2)
        draw.rectangle(draw.textbbox((box[0] + 2, box[1] + 1), told), fill=colour)
        draw.text((box[0] + 2, box[1] + 1), told, fill="white")
    if "seg.png" not in sample.members:
        return [small]
    with Image.open(io.BytesIO(sample.members["seg.png"]), formats=("PNG",)) as opened:
        classes = np.asarray(opened.resize(small.size, Image.Resampling.NEAREST), dtype=np.uint8)
    colours = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)  # any, but always the same
    return [small, Image.blend(small, Image.fromarray(colours[classes]), _LAID_OVER)]


def _boxes(metadata: Mapping[str, Any]) -> list[tuple[str, list[float]]]:
    """Names and edges of a sample's objects; none where they aren't as `data.inputs.layout` reads them."""
    found = []
    try:
        for entry in metadata.get("objects") or []:
            left, top, right, bottom = (float(edge) for edge in entry["box"])
            if left <= right and top <= bottom:
                found.append((str(entry.get("name", entry["class"])), [left, top, right, bottom]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return []
    return found


def _inline(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _brief(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:119] + "…"
