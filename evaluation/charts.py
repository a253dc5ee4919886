"""Line charts: each drawn once as HTML and SVG, and its numbers for the script that makes it interactive.

Lines are drawn in a stretched SVG with strokes that do not stretch; labels are text at percentages. So a
chart stays readable from a telephone to a wide screen, which a picture of a chart does not. charts.js draws the same,
from the numbers, and must look the same: what is here and there is a pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from evaluation.numbers import FORMATS, at_ticks, whole
from evaluation.run_metrics import Series
from evaluation.thinning import Thin, smooth, thin

Place = Callable[[np.ndarray], np.ndarray]
COLOURS = 6
DRAWN_BUCKETS = 300
"""More would not be seen in a chart that can't be zoomed."""
SMOOTHING = 0.04
"""Share of a noisy line's points that its mean goes over; the slider begins there."""
MOST_RAW = 3
"""Of more noisy lines than these, what is behind their means is left out."""
CUT = 0.005
"""Share of a noisy line's extremes that may lie outside, so that one outlier doesn't press everything else flat."""
ROBUST_CUT, ROBUST_TIMES = 0.02, 1.5
"""Share of each line's values that may lie outside a robust axis, where the highest is so many times the others."""


@dataclass(frozen=True, eq=False)
class Line:
    """One line: its name in the legend, its series, the number of its run, and its look.

    colour: 1 to COLOURS, the page's series colours; dashed tells lines of one colour apart.
    """

    name: str
    series: Series
    run: int = 0
    colour: int = 1
    dashed: bool = False


@dataclass(frozen=True, eq=False)
class Chart:
    """A chart of lines over training steps.

    metric: the name of what is drawn, as it was logged. format: of its values, one of evaluation.numbers.FORMATS.
    zero_based: the y axis begins at zero. robust: few values at its end, such as those of first steps, may lie beyond
    the axis; the page says so. logarithmic: the y axis is, when all values allow it. legend: there is one
    even of a single line.
    """

    title: str
    lines: Sequence[Line]
    metric: str = ""
    format: str = "number"
    note: str = ""
    zero_based: bool = False
    robust: bool = False
    logarithmic: bool = False
    wide: bool = False
    legend: bool = False


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values in [low, high], about `count` of them, a step of 1, 2, 2.5 or 5 times a power of ten."""
    span = high - low
    if not span > 0:
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def logarithmic_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten in [low, high]; powers of ten alone over more than three decades."""
    factors = (1,) if high / low > 1000 else (1, 2, 5)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]


def binary_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Values in [low, high], at most about `count` of them, multiples of a power of two: round numbers of MiB."""
    span = high - low
    if not span > 0:
        return [low]
    step = 2.0 ** math.ceil(math.log2(span / count) - 1e-9)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def draw(chart: Chart, number: int, span: tuple[float, float]) -> Markup:
    """The chart as a <figure>, a remark in it when no line has a finite point.

    number: of its data, in the page. span: the first and the last step of the x axis.
    """
    lines = [(line, thin(line.series, DRAWN_BUCKETS)) for line in chart.lines]
    lines = [(line, thinned) for line, thinned in lines if len(thinned.steps)]
    if not lines:
        return Markup("<figure class='chart'>{}<p class='quiet'>no finite values</p></figure>").format(_head(chart))
    courses = [course(thinned) for _, thinned in lines]
    x_low, x_high = span
    raw = sum(thinned.noisy for _, thinned in lines) <= MOST_RAW
    y_low, y_high, logarithmic = _range(chart, [t for _, t in lines if raw and t.noisy], courses)
    cut = max(float(c.max()) for c in courses) > y_high
    head = _head(chart, max(float(line.series.finite().values.max()) for line, _ in lines) if cut else None)
    transform = np.log10 if logarithmic else np.asarray
    bottom, top = float(transform(y_low)), float(transform(y_high))

    def across(x: np.ndarray) -> np.ndarray:
        return (x - x_low) / (x_high - x_low)

    def up(y: np.ndarray) -> np.ndarray:
        inside: np.ndarray = (transform(np.clip(y, y_low, y_high)) - bottom) / (top - bottom)
        return inside

    y_ticks = np.array(ticks(y_low, y_high, logarithmic, binary=chart.format == "bytes"))
    # There is no half step.
    x_ticks = np.array([x for x in linear_ticks(x_low, x_high, 4) if x == round(x)])
    rules = [
        Markup("<line x1='0' x2='1000' y1='{0}' y2='{0}'/>").format(f"{1000 * (1 - place):.1f}")
        for place in up(y_ticks)
    ]
    labels = [
        Markup("<span class='y' style='bottom:{}%'>{}</span>").format(f"{100 * place:.2f}", text)
        for text, place in zip(at_ticks(y_ticks.tolist(), FORMATS[chart.format]), up(y_ticks), strict=True)
    ] + [
        Markup("<span class='x' style='left:{}%'>{}</span>").format(f"{100 * place:.2f}", whole(float(x)))
        for x, place in zip(x_ticks, across(x_ticks), strict=True)
    ]
    paths = [
        path
        for (line, thinned), main in zip(lines, courses, strict=True)
        for path in _paths(line, thinned, main, raw and thinned.noisy, across, up)
    ]
    return Markup(
        "<figure class='chart{wide}' data-chart='{number}' data-metric='{metric}'>{head}"
        "<div class='plot'><svg viewBox='0 0 1000 1000' preserveAspectRatio='none' "
        "role='img' aria-label='{title}'><g class='rules'>{rules}</g>{paths}</svg>{labels}</div></figure>"
    ).format(
        wide=" wide" if chart.wide else "",
        number=number,
        metric=chart.metric,
        head=head,
        title=chart.title,
        rules=Markup("").join(rules),
        paths=Markup("").join(paths),
        labels=Markup("").join(labels),
    )


def extent(charts: Sequence[Chart]) -> tuple[float, float]:
    """The x axis of all charts of a page: one place is one moment in all of them."""
    steps = [line.series.steps for chart in charts for line in chart.lines]
    low, high = min((int(s[0]) for s in steps), default=0), max((int(s[-1]) for s in steps), default=1)
    low = 0 if 0 < low < 0.1 * high else low
    return low, high if high > low else low + 1


def ticks(low: float, high: float, logarithmic: bool, binary: bool = False) -> list[float]:
    """Those of the y axis. binary: its values are bytes."""
    found = logarithmic_ticks(low, high) if logarithmic else []
    return found if len(found) > 1 else (binary_ticks if binary else linear_ticks)(low, high, 4)


def course(thinned: Thin) -> np.ndarray:
    """What is drawn of a line in full: its smoothed means when it is noisy, and else itself."""
    if not thinned.noisy:
        return thinned.means
    return smooth(thinned.means, max(1, int(SMOOTHING * len(thinned.means))))


def numbers(charts: Sequence[Chart], buckets: int) -> dict[str, Any]:
    """What charts.js draws from, as JSON can hold it: {"steps": lists of steps, "charts": one for each chart}.

    Lines of the same steps share a list. buckets: see `thin`.
    """
    steps: dict[bytes, int] = {}
    lists: list[list[int]] = []

    def shared(found: np.ndarray) -> int:
        key = found.tobytes()
        if key not in steps:
            steps[key] = len(lists)
            lists.append(found.tolist())
        return steps[key]

    def data(line: Line) -> dict[str, Any]:
        thinned = thin(line.series, buckets)
        bounds = {}
        if thinned.lows is not None and thinned.highs is not None:
            bounds = {"lows": _short(thinned.lows), "highs": _short(thinned.highs)}
        return {
            "name": line.name, "run": line.run, "colour": line.colour, "dashed": line.dashed, "noisy": thinned.noisy,
            "steps": shared(thinned.steps), "means": _short(thinned.means), **bounds,
        }  # fmt: skip

    content = [
        {
            "format": chart.format, "zero": chart.zero_based, "robust": chart.robust, "log": chart.logarithmic,
            "lines": [data(line) for line in chart.lines],
        }
        for chart in charts
    ]  # fmt: skip
    return {"steps": lists, "charts": content}


def _short(values: np.ndarray) -> list[float]:
    """Five digits: more are not shown."""
    return [float(f"{value:.5g}") for value in values]


def _head(chart: Chart, beyond: float | None = None) -> Markup:
    """Title, remarks and legend. beyond: the highest value, where the axis doesn't reach it."""
    keys = [
        Markup("<span class='key s{}{}' data-line='{}'>{}</span>").format(
            line.colour, " dashed" if line.dashed else "", i, line.name
        )
        for i, line in enumerate(chart.lines)
        if chart.legend or len(chart.lines) > 1
    ]
    lost = sum(len(line.series.values) - len(line.series.finite().values) for line in chart.lines)
    notes = [chart.note] if chart.note else []
    notes += [f"{whole(lost)} values are not finite and left out"] if lost else []
    notes += [f"axis cut, values go up to {FORMATS[chart.format](beyond)}"] if beyond is not None else []
    return Markup("<figcaption><b>{}</b> {}{}{}</figcaption>").format(
        chart.title,
        Markup("<code>{}</code>").format(chart.metric) if chart.metric else "",
        Markup("<span class='note'>{}</span>").format("; ".join(notes)) if notes else "",
        Markup("<span class='keys'>{}</span>").format(Markup("").join(keys)) if keys else "",
    )


def _range(chart: Chart, behind: Sequence[Thin], courses: Sequence[np.ndarray]) -> tuple[float, float, bool]:
    """Lowest and highest value shown, and whether the axis is logarithmic. The courses fit, unless it is robust."""
    low, high = min(float(c.min()) for c in courses), max(float(c.max()) for c in courses)
    if chart.robust and high > ROBUST_TIMES * (most := max(float(np.quantile(c, 1 - ROBUST_CUT)) for c in courses)) > 0:
        high = most
    for thinned in behind:
        low = min(low, float(np.quantile(thinned.means if thinned.lows is None else thinned.lows, CUT)))
        high = max(high, float(np.quantile(thinned.means if thinned.highs is None else thinned.highs, 1 - CUT)))
    if chart.logarithmic and low > 0 and high / low > 4:
        return low / 1.1, high * 1.1, True
    if chart.zero_based:
        low = min(0.0, low)
    margin = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    return (low if chart.zero_based and low == 0 else low - margin), high + margin, False


def _paths(line: Line, thinned: Thin, main: np.ndarray, behind: bool, across: Place, up: Place) -> list[Markup]:
    x = across(thinned.steps)
    look = f"s{line.colour}{' dashed' if line.dashed else ''}"
    paths = [Markup("<path class='{}' d='{}'/>").format(look, _path(x, up(main)))]
    if behind and thinned.lows is not None and thinned.highs is not None:
        around = np.concatenate([x, x[::-1]]), np.concatenate([up(thinned.highs), up(thinned.lows)[::-1]])
        return [Markup("<path class='band {}' d='{}Z'/>").format(look, _path(*around)), *paths]
    if behind:
        return [Markup("<path class='faint {}' d='{}'/>").format(look, _path(x, up(thinned.means))), *paths]
    return paths


def _path(x: np.ndarray, y: np.ndarray) -> str:
    points = [f"{1000 * a:.1f} {1000 * (1 - b):.1f}" for a, b in zip(x, y, strict=True)]
    if len(points) == 1:
        points.append(points[0])  # with round line ends a line of no length is a dot
    return "M" + "L".join(points)
