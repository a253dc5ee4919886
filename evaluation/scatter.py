"""Two measures against each other as HTML and SVG, drawn as evaluation.charts draws lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from evaluation.charts import linear_ticks
from evaluation.numbers import at_ticks

MARGIN = 0.08
"""Of each axis, beyond the outermost points, so that these and their labels lie inside."""


@dataclass(frozen=True)
class Point:
    """One setting: where it lies, the short text beside it, and the long one under the pointer.

    series: points of one name are joined, in their order, and have one colour. front: it is on the Pareto front.
    """

    x: float
    y: float
    label: str
    detail: str
    series: str
    front: bool


@dataclass(frozen=True)
class Scatter:
    """Points; y is better when lower and x when higher."""

    x_name: str
    y_name: str
    points: Sequence[Point]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which (x, y) no other beats: none has an x at least as high and a y at least as low, and one of them better."""
    return [
        not any(a >= x and b <= y and (a, b) != (x, y) for a, b in points)
        for x, y in points
    ]  # fmt: skip


def draw_scatter(scatter: Scatter) -> Markup:
    """The plot as a <figure>. Raises ValueError without points."""
    points = scatter.points
    if not points:
        raise ValueError("a plot needs at least one point")
    (x_low, x_high), (y_low, y_high) = _range([p.x for p in points]), _range([p.y for p in points])

    def across(x: float) -> float:
        return (x - x_low) / (x_high - x_low)

    def up(y: float) -> float:
        return (y - y_low) / (y_high - y_low)

    def path(drawn: Sequence[Point], kind: str) -> Markup:
        d = "L".join(f"{1000 * across(p.x):.1f} {1000 * (1 - up(p.y)):.1f}" for p in drawn)
        return Markup("<path class='{}' d='M{}'/>").format(kind, d)

    names = list(dict.fromkeys(point.series for point in points))
    colours = {name: f"s{1 + i % 6}" for i, name in enumerate(names)}
    x_ticks, y_ticks = linear_ticks(x_low, x_high), linear_ticks(y_low, y_high)
    rules = [
        Markup("<line x1='0' x2='1000' y1='{0}' y2='{0}'/>").format(f"{1000 * (1 - up(y)):.1f}") for y in y_ticks
    ] + [Markup("<line y1='0' y2='1000' x1='{0}' x2='{0}'/>").format(f"{1000 * across(x):.1f}") for x in x_ticks]
    labels = [
        Markup("<span class='y' style='bottom:{:.2f}%'>{}</span>").format(100 * up(y), text)
        for y, text in zip(y_ticks, at_ticks(y_ticks), strict=True)
    ] + [
        Markup("<span class='x' style='left:{:.2f}%'>{}</span>").format(100 * across(x), text)
        for x, text in zip(x_ticks, at_ticks(x_ticks), strict=True)
    ]
    front = sorted((point for point in points if point.front), key=lambda point: (point.x, point.y))
    marks = [
        Markup("<i class='point {}{}' style='left:{:.2f}%;bottom:{:.2f}%' title='{}'><b>{}</b></i>").format(
            colours[p.series], " front" if p.front else "", 100 * across(p.x), 100 * up(p.y), p.detail, p.label
        )
        for p in points
    ]
    keys = [Markup("<span class='key {}'>{}</span>").format(colours[name], name) for name in names if len(names) > 1]
    title = f"{scatter.y_name} against {scatter.x_name}"
    return Markup(
        "<figure class='chart scatter wide'><figcaption><b>{title}</b> <span class='note'>numbers beside points: "
        "guidance scale; right and down is better; filled points, joined by dashes: no other setting is better in "
        "both</span><span class='keys'>{keys}</span></figcaption>"
        "<div class='plot'><svg viewBox='0 0 1000 1000' preserveAspectRatio='none' role='img' aria-label='{title}'>"
        "<g class='rules'>{rules}</g>{lines}</svg>{labels}<span class='axis'>{x_name} →</span>{marks}</div></figure>"
    ).format(
        title=title,
        x_name=scatter.x_name,
        keys=Markup("").join(keys),
        rules=Markup("").join(rules),
        lines=Markup("").join(
            [path([p for p in points if p.series == name], f"faint {colours[name]}") for name in names]
            + [path(front, "front-line")]
        ),
        labels=Markup("").join(labels),
        marks=Markup("").join(marks),
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = MARGIN * (high - low) or abs(high) * 0.1 or 1.0
    return low - margin, high + margin
