"""Laws of charts: nothing lies outside, nothing of interest is lost, and text stays text."""

import json
import math
import re
from html import unescape

import pytest

from evaluation.charts import POINTS, Chart, Line, draw, linear_ticks, logarithmic_ticks, smooth
from evaluation.numbers import duration, number, percent, whole


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 7), (1e-6, 3e-6), (12, 90_000), (0.5, 0.5)])
def test_linear_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = linear_ticks(low, high)
    assert 1 <= len(ticks) <= 8
    slack = 1e-9 * max(abs(low), abs(high))
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    assert ticks == sorted(set(ticks))


def test_logarithmic_ticks() -> None:
    assert logarithmic_ticks(0.09, 3) == pytest.approx([0.1, 0.2, 0.5, 1, 2])
    assert logarithmic_ticks(0.5, 20_000) == pytest.approx([1, 10, 100, 1000, 10_000])


def test_smoothing_keeps_constants_ends_and_length() -> None:
    assert smooth([3.0] * 20, 7) == pytest.approx([3.0] * 20)
    ramp = [float(i) for i in range(30)]
    found = smooth(ramp, 9)
    assert len(found) == 30
    assert found[0] == 0  # a steep beginning is not averaged away
    assert found[10] == pytest.approx(10)
    assert smooth([], 5) == []


def coordinates(html: str) -> list[tuple[float, float]]:
    path = re.search(r"<path[^>]* d='M([^']*)'", html)
    assert path is not None
    return [(float(x), float(y)) for x, y in (pair.split() for pair in path[1].split("L"))]


@pytest.mark.parametrize("logarithmic", [False, True])
def test_points_lie_inside_and_a_spike_survives_thinning(logarithmic: bool) -> None:
    count = 10 * POINTS
    values = [1.0] * count
    values[1234] = 50.0
    html = str(draw(Chart("spike", [Line("a", range(count), values)], number, logarithmic=logarithmic), whole))
    points = coordinates(html)
    assert len(points) <= 2 * POINTS
    assert all(0 <= x <= 1000 and 0 <= y <= 1000 for x, y in points)
    assert min(y for _, y in points) < 100  # the spike is at the top
    assert max(y for _, y in points) > 900


def test_values_that_are_not_finite_are_left_out() -> None:
    html = str(draw(Chart("loss", [Line("a", [1, 2, 3], [1.0, math.nan, 2.0])], number), whole))
    assert len(coordinates(html)) == 2
    assert "nan" not in html
    assert "no values" in str(draw(Chart("loss", [Line("a", [1], [math.inf])], number), whole))


def test_one_point_and_constant_lines_can_be_drawn() -> None:
    for values in ([2.0], [0.0, 0.0, 0.0]):
        html = str(draw(Chart("flat", [Line("a", range(len(values)), values)], number, zero_based=True), whole))
        assert all(0 <= x <= 1000 and 0 <= y <= 1000 for x, y in coordinates(html))


def test_names_are_escaped_and_shown_values_are_exact() -> None:
    name = "<i>'a' & \"b\"</i>"
    html = str(draw(Chart(name, [Line(name, [10, 20], [0.5, 0.25]), Line("z", [10], [1.0])], number), whole))
    assert "<i>" not in html
    data = re.search(r"data-lines='([^']*)'", html)
    assert data is not None
    lines = json.loads(unescape(data[1]))
    assert lines[0]["name"] == name
    assert [point[2:] for point in lines[0]["points"]] == [["10", "0.5"], ["20", "0.25"]]


def test_numbers_are_readable() -> None:
    values = [23456.7, 96.134, 0.081254, 2.1e-5, 1e-4, 0, -3.5, 1000.4, math.nan]
    assert [number(v) for v in values] == ["23,457", "96.13", "0.08125", "2.1e-5", "1e-4", "0", "-3.5", "1,000", "nan"]
    seconds = [0, 2.34, 42, 200, 1700, 7500, 273_600]
    assert [duration(s) for s in seconds] == ["0 s", "2.3 s", "42 s", "3 min 20 s", "28 min", "2 h 05 min", "3 d 4 h"]
    assert [percent(p) for p in (0, 0.0004, 0.031, 0.5)] == ["0 %", "0.04 %", "3.1 %", "50 %"]
