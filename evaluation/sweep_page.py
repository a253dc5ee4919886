"""sweep.html: measures against each other, a table and the pictures of every setting of a sweep, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from evaluation.numbers import duration, number, whole
from evaluation.protocol import Protocol
from evaluation.report_page import fill, inline
from evaluation.results import Result, write_text
from evaluation.scatter import Point, Scatter, draw_scatter
from evaluation.table import columns, published


def write_page(
    output: Path,
    protocols: Sequence[Protocol],
    results: Sequence[Result],
    fronts: Mapping[str, Sequence[bool]],
    grids: Sequence[Path],
) -> Path:
    """Writes <output>/sweep.html, which holds its pictures and loads nothing, and returns its path.

    fronts: by the name of each measure that the distance is drawn against, which settings are on the Pareto front.
    grids: a picture of each setting's samples.
    """
    first = results[0]
    names = list(columns(first.measured))
    rows = [
        {
            "scale": f"{protocol.guidance_scale:g}",
            "steps": whole(protocol.sampler_steps),
            "time": duration(result.seconds),
            "front": any(front[i] for front in fronts.values()),
            "values": _shown(columns(result.measured), names),
            "grid": inline(grids[i]),
        }
        for i, (protocol, result) in enumerate(zip(protocols, results, strict=True))
    ]
    page = fill(
        "sweep.html.j2",
        ("pictures.js",),
        protocol=first.protocol["name"],
        step=whole(first.step),
        images=whole(first.measured["generated_images"]),
        reference_images=whole(first.measured["reference_images"]),
        plots=[draw_scatter(_scatter(protocols, results, name, front)) for name, front in fronts.items()],
        names=names,
        rows=rows,
        paper=[(title, _shown(values, names)) for title, values in published(first.paper, first.measured)],
        card=yaml.safe_dump(_without_the_swept(first), sort_keys=False, allow_unicode=True, width=100).strip(),
    )
    path = output / "sweep.html"
    write_text(path, page)
    return path


def _scatter(protocols: Sequence[Protocol], results: Sequence[Result], name: str, front: Sequence[bool]) -> Scatter:
    distance = results[0].measured["frechet_name"]
    points = []
    for protocol, result, on_front in zip(protocols, results, front, strict=True):
        found = columns(result.measured)
        x, y = float(found[name] or 0), float(found[distance] or 0)
        scale, steps = f"{protocol.guidance_scale:g}", f"{protocol.sampler_steps} steps"
        detail = f"guidance {scale}, {steps}: {number(y)}, {number(x)}"
        points.append(Point(x, y, scale, detail, steps, on_front))
    return Scatter(name, distance, points)


def _shown(values: Mapping[str, float | None], names: Sequence[str]) -> list[str]:
    return ["–" if (value := values.get(name)) is None else number(value) for name in names]


def _without_the_swept(result: Result) -> dict[str, Any]:
    card = {key: value for key, value in result.protocol.items() if key not in ("guidance_scale", "sampler_steps")}
    return {**card, "network": result.measured["features"], "other networks": list(result.measured["networks"])}
