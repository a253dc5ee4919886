"""Line charts as HTML and SVG that follow the page: its width, its colours, its text size.

Lines are drawn in a stretched SVG with strokes that do not stretch; labels are text at percentages. So a
chart stays readable from a telephone to a wide screen, which a picture of a chart does not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

Format = Callable[[float], str]
Place = Callable[[float], float]
POINTS = 400  # more would not be seen, and would make the page heavy


@dataclass(frozen=True)
class Line:
    """One line: its name, points in order of x, and how it is drawn.

    style: "main" is a full line, "faint" the raw values behind a smoothed one.
    colour: 1 to 6, the page's series colours.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 1
    style: str = "main"


@dataclass(frozen=True)
class Chart:
    """A chart of lines over training steps.

    zero_based: the y axis begins at zero. logarithmic: the y axis is, when all values allow it.
    """

    title: str
    lines: Sequence[Line]
    format: Format
    note: str = ""
    zero_based: bool = False
    logarithmic: bool = False
    wide: bool = False


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred moving average over `window` values.

    It narrows to nothing at the beginning, where curves are steep, and looks back only at the end.
    """
    total = [0.0]
    for value in values:
        total.append(total[-1] + value)
    half = window // 2
    result = []
    for i in range(len(values)):
        back = min(half, i)
        ahead = min(back, len(values) - 1 - i)
        result.append((total[i + ahead + 1] - total[i - back]) / (ahead + back + 1))
    return result


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


def draw(chart: Chart, format_step: Format) -> Markup:
    """The chart as a <figure>; nothing but its title and a remark when no line has a finite point."""
    lines = [_finite(line) for line in chart.lines]
    lines = [line for line in lines if line.x]
    if not lines:
        title = Markup("<figcaption><b>{}</b></figcaption>").format(chart.title)
        return Markup("<figure class='chart'>{}<p class='quiet'>no values</p></figure>").format(title)
    x_low, x_high = min(min(line.x) for line in lines), max(max(line.x) for line in lines)
    x_low = 0 if 0 < x_low < 0.1 * x_high else x_low
    x_high = x_high if x_high > x_low else x_low + 1
    y_low, y_high, logarithmic = _range(chart, lines)
    transform = math.log10 if logarithmic else float
    bottom, top = transform(y_low), transform(y_high)

    def place_x(x: float) -> float:
        return (x - x_low) / (x_high - x_low)

    def place_y(y: float) -> float:
        return (transform(y) - bottom) / (top - bottom)

    y_ticks = logarithmic_ticks(y_low, y_high) if logarithmic else linear_ticks(y_low, y_high, 4)
    if logarithmic and len(y_ticks) < 2:
        y_ticks = linear_ticks(y_low, y_high, 4)
    rules = Markup("").join(
        Markup("<line x1='0' x2='1000' y1='{0}' y2='{0}'/>").format(f"{1000 * (1 - place_y(y)):.1f}") for y in y_ticks
    )
    labels = Markup("").join(
        Markup("<span class='y' style='bottom:{}%'>{}</span>").format(f"{100 * place_y(y):.2f}", chart.format(y))
        for y in y_ticks
    ) + Markup("").join(
        Markup("<span class='x' style='left:{}%'>{}</span>").format(f"{100 * place_x(x):.2f}", format_step(x))
        for x in linear_ticks(x_low, x_high, 4)
        if x == round(x)  # there is no half step
    )
    paths = Markup("").join(
        Markup("<path class='s{} {}' d='{}'/>").format(line.colour, line.style, _path(line, place_x, place_y))
        for line in lines
    )
    main = [line for line in lines if line.style == "main"]
    legend = Markup("").join(
        Markup("<span class='key s{}'>{}</span>").format(line.colour, line.name) for line in main if len(main) > 1
    )
    note = Markup("<span class='note'>{}</span>").format(chart.note) if chart.note else Markup("")
    return Markup(
        "<figure class='chart{wide}'><figcaption><b>{title}</b> {note}{legend}</figcaption>"
        "<div class='plot' data-lines='{data}'><svg viewBox='0 0 1000 1000' preserveAspectRatio='none' "
        "role='img' aria-label='{title}'><g class='rules'>{rules}</g>{paths}</svg>{labels}</div></figure>"
    ).format(
        wide=" wide" if chart.wide else "",
        title=chart.title,
        note=note,
        legend=legend,
        data=_hover_data(main, place_x, place_y, chart.format, format_step),
        rules=rules,
        paths=paths,
        labels=labels,
    )


def _finite(line: Line) -> Line:
    pairs = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    return Line(line.name, [x for x, _ in pairs], [y for _, y in pairs], line.colour, line.style)


def _range(chart: Chart, lines: Sequence[Line]) -> tuple[float, float, bool]:
    values = sorted(y for line in lines for y in line.y)
    low, high = values[0], values[-1]
    # One outlier must not press everything else flat: a full line always fits, the faint one may be cut.
    main = [y for line in lines if line.style == "main" for y in line.y]
    if main and len(values) > 50:
        low = min(min(main), values[len(values) // 200])
        high = max(max(main), values[-1 - len(values) // 200])
    logarithmic = chart.logarithmic and low > 0 and high / low > 4
    if logarithmic:
        return low / 1.1, high * 1.1, True
    if chart.zero_based:
        low = min(0.0, low)
    if high == low:
        margin = abs(high) * 0.1 or 1.0
        return (low if chart.zero_based and low == 0 else low - margin), high + margin, False
    margin = 0.05 * (high - low)
    return (low if chart.zero_based and low == 0 else low - margin), high + margin, False


def _thin(line: Line) -> list[tuple[float, float]]:
    """At most about 2 x POINTS points: the lowest and highest of each stretch, so that spikes stay."""
    points = list(zip(line.x, line.y, strict=True))
    if len(points) <= 2 * POINTS:
        return points
    kept = []
    for i in range(POINTS):
        part = points[i * len(points) // POINTS : (i + 1) * len(points) // POINTS]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept


def _path(line: Line, place_x: Place, place_y: Place) -> str:
    clipped = ((place_x(x), min(1.0, max(0.0, place_y(y)))) for x, y in _thin(line))
    points = [f"{1000 * x:.1f} {1000 * (1 - y):.1f}" for x, y in clipped]
    if len(points) == 1:
        points.append(points[0])  # with round line ends a line of no length is a dot
    return "M" + "L".join(points)


def _hover_data(lines: Sequence[Line], place_x: Place, place_y: Place, format_y: Format, format_step: Format) -> str:
    """What the page's script shows under the pointer: for each line [x, y, step, value] with x, y in 0..1."""
    content = []
    for line in lines:
        points = list(zip(line.x, line.y, strict=True))
        stride = max(1, math.ceil(len(points) / POINTS))
        chosen = points[::stride] + ([points[-1]] if (len(points) - 1) % stride else [])
        rows = [[round(place_x(x), 4), round(place_y(y), 4), format_step(x), format_y(y)] for x, y in chosen]
        content.append({"name": line.name, "colour": line.colour, "points": rows})
    return json.dumps(content, separators=(",", ":"))
