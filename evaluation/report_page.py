"""Pages that hold their pictures, styles, scripts and data, and load nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from PIL import Image

from evaluation.charts import draw, extent, numbers
from evaluation.panels import Group, look
from evaluation.run_metrics import Series
from evaluation.run_record import RunRecord

TEMPLATES = Path(__file__).with_name("templates")
PAGE_BUCKETS = 60_000
"""Of all lines of a page together, about 2 MB of numbers."""
LEAST_BUCKETS, MOST_BUCKETS = 100, 1000
AXIS_POINTS = 500
# Small PNGs stay as they are; large ones would make a page that is slow to open.
LARGE_BYTES = 150_000
WIDEST = 1600


def fill(template: str, scripts: Sequence[str], **content: Any) -> str:
    """The page of a template, with the styles and the named scripts of the templates' folder; all text is escaped.

    The page forbids its browser all but these scripts, and to load anything.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["j2"], default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    texts = [(TEMPLATES / name).read_text() for name in scripts]
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return environment.get_template(template).render(
        css=Markup((TEMPLATES / "page.css").read_text()),
        scripts=[Markup(text) for text in texts],
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}",
        **content,
    )


def render(template: str, runs: Sequence[RunRecord], groups: Sequence[Group], **content: Any) -> str:
    """The page of a template with charts of runs."""
    charts = [chart for group in groups for chart in group.charts]
    lines = sum(len(chart.lines) for chart in charts)
    buckets = min(MOST_BUCKETS, max(LEAST_BUCKETS, PAGE_BUCKETS // max(1, lines)))
    data = {"runs": [_axes(run) for run in runs], **numbers(charts, buckets)}
    figures = iter([draw(chart, i, extent(charts)) for i, chart in enumerate(charts)])
    looks = [look(number) for number in range(len(runs))]
    return fill(
        template,
        ("pictures.js", "charts.js"),
        restarted=any(run.restarts for run in runs),
        data=_embedded(data) if charts else None,
        groups=[
            {"title": group.title, "in_pairs": group.in_pairs, "figures": [next(figures) for _ in group.charts]}
            for group in groups
        ],
        runs=[
            {"name": run.name, "colour": colour, "dashed": dashed}
            for run, (colour, dashed) in zip(runs, looks, strict=True)
        ],
        **content,
    )


def _axes(run: RunRecord) -> dict[str, Any]:
    """What other x axes are made of: pairs of a step and the images seen, or the seconds since the run began, at it."""
    times = run.times and Series(run.times.steps, run.times.values - run.times.values[0])
    return {
        "name": run.name,
        "restarts": run.restarts,
        "images": _knots(run.seen),
        "seconds": _knots(times),
    }


def _knots(series: Series | None) -> list[list[float]] | None:
    if series is None:
        return None
    count = len(series.steps)
    chosen = np.unique(np.linspace(0, count - 1, min(count, AXIS_POINTS)).round().astype(int))
    return [series.steps[chosen].tolist(), [round(value, 1) for value in series.values[chosen].tolist()]]


def _embedded(data: dict[str, Any]) -> Markup:
    """JSON that no text in it can end."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def inline(path: Path, widest: int = WIDEST) -> str:
    """The picture as a data URL, as it is when small and as WebP of at most `widest` pixels otherwise."""
    data, kind = path.read_bytes(), "png"
    if len(data) > LARGE_BYTES:
        with Image.open(io.BytesIO(data)) as image:
            picture = image.convert("RGB")
        picture.thumbnail((widest, widest), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, format="WEBP", quality=90)
        data, kind = buffer.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
