"""Laws of charts: nothing lies outside, nothing of interest is lost, and text stays text."""

import itertools
import math
import re
from collections.abc import Sequence

import numpy as np
import pytest

from evaluation.charts import (
    COLOURS,
    DRAWN_BUCKETS,
    Chart,
    Line,
    binary_ticks,
    draw,
    extent,
    linear_ticks,
    logarithmic_ticks,
    numbers,
)
from evaluation.numbers import at_ticks, duration, number, percent, seconds, size
from evaluation.report_page import TEMPLATES
from evaluation.run_metrics import Series
from evaluation.thinning import smooth, thin


def series(values: Sequence[float]) -> Series:
    return Series(np.arange(len(values)), np.array(values, dtype=np.float64))


def drawn(chart: Chart) -> str:
    return str(draw(chart, 0, extent([chart])))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 7), (1e-6, 3e-6), (12, 90_000), (0.5, 0.5)])
def test_linear_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = linear_ticks(low, high)
    assert 1 <= len(ticks) <= 8
    slack = 1e-9 * max(abs(low), abs(high))
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    assert ticks == sorted(set(ticks))


@pytest.mark.parametrize("high", [3.0, 700.0, 12.4 * 2**20, 162.0 * 2**20, 1.3 * 2**30, 900.0 * 2**40])
def test_ticks_of_bytes_are_few_and_round(high: float) -> None:
    ticks = binary_ticks(0.0, high, 4)
    assert 3 <= len(ticks) <= 5 and ticks[0] == 0 and ticks[-1] <= high
    assert all(len(size(tick)) <= len("1.25 GiB") for tick in ticks)
    assert math.log2(ticks[1]).is_integer()


def test_an_axis_of_bytes_has_round_numbers() -> None:
    html = drawn(Chart("bytes", [Line("a", series([0.0, 12e6]))], format="bytes", zero_based=True))
    assert all(f">{label}</span>" in html for label in ("0 B", "4 MiB", "8 MiB"))


def test_a_first_step_does_not_press_a_robust_axis_flat() -> None:
    """What lies beyond the axis is told, and an axis without such a step is as it always was."""
    values = [3.0, *(0.4 + 0.001 * i for i in range(99))]
    lines = [Line("step", series(values)), Line("data", series([v / 10 for v in values]))]
    html = drawn(Chart("seconds", lines, format="seconds", zero_based=True, robust=True))
    assert "axis cut, values go up to 3 s" in html
    assert all(0 <= y <= 1000 for _, y in coordinates(html))
    ordinary = [y for _, y in coordinates(html)[1:100]]
    assert max(ordinary) < 250  # near the top, as 0.4 s is of 0.5
    long = Line("step", series([3.0, *[0.4] * 10 * DRAWN_BUCKETS]))  # a bucket's mean is less than what was measured
    assert "go up to 3 s" in drawn(Chart("seconds", [long], format="seconds", zero_based=True, robust=True))
    assert "axis cut" not in drawn(Chart("seconds", lines, format="seconds", zero_based=True))
    assert "axis cut" not in drawn(Chart("seconds", [Line("a", series(values[1:]))], zero_based=True, robust=True))


def test_logarithmic_ticks() -> None:
    assert logarithmic_ticks(0.09, 3) == pytest.approx([0.1, 0.2, 0.5, 1, 2])
    assert logarithmic_ticks(0.5, 20_000) == pytest.approx([1, 10, 100, 1000, 10_000])


def test_smoothing_keeps_constants_ends_and_length() -> None:
    assert smooth(np.full(20, 3.0), 7) == pytest.approx(np.full(20, 3.0))
    found = smooth(np.arange(30.0), 9)
    assert len(found) == 30
    assert found[0] == 0  # a steep beginning is not averaged away
    assert found[10] == pytest.approx(10)
    assert found[-1] == pytest.approx(27)  # the mean of the last five: the end doesn't follow a single value
    assert len(smooth(np.zeros(0), 5)) == 0


def test_thinning_keeps_every_extreme_and_the_mean() -> None:
    values = np.random.default_rng(0).normal(size=100_003)
    values[[17, 54_321]] = 50.0, -40.0
    found = thin(series(values.tolist()), 500)
    assert found.lows is not None and found.highs is not None
    assert len(found.steps) == len(found.means) == 500
    assert (found.lows.min(), found.highs.max()) == (-40.0, 50.0)
    assert found.means.mean() == pytest.approx(values.mean(), abs=1e-4)  # buckets differ by a point in size
    assert (np.diff(found.steps) > 0).all()
    assert (found.steps[0], found.steps[-1]) == (0, 100_002)
    assert (found.lows <= found.means).all() and (found.means <= found.highs).all()


def test_short_series_stay_whole() -> None:
    assert thin(series(range(1000)), 500).lows is None
    assert thin(series([1.0, math.nan, 2.0, math.inf]), 500).means.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("slope", [0.0, 0.1, -1.0])
def test_noise_is_told_from_a_course_at_any_scale(slope: float) -> None:
    x = np.linspace(0, 10, 1000)
    noise = 0.02 * np.random.default_rng(1).normal(size=1000)
    assert thin(series((np.exp(slope * x) + noise).tolist()), 500).noisy
    assert not thin(series(np.exp(slope * x).tolist()), 500).noisy
    assert not thin(series(np.floor(x).tolist()), 500).noisy


def coordinates(html: str) -> list[tuple[float, float]]:
    return [
        (float(x), float(y))
        for path in re.findall(r"<path[^>]* d='M([^'Z]*)", html)
        for x, y in (pair.split() for pair in path.split("L"))
    ]


@pytest.mark.parametrize("logarithmic", [False, True])
def test_points_lie_inside_and_a_spike_survives_thinning(logarithmic: bool) -> None:
    values = [1.0 + 0.01 * (i % 2) for i in range(10 * DRAWN_BUCKETS)]
    values[1234] = 50.0
    html = drawn(Chart("spike", [Line("a", series(values))], logarithmic=logarithmic))
    points = coordinates(html)
    assert len(points) <= 4 * DRAWN_BUCKETS
    assert all(0 <= x <= 1000 and 0 <= y <= 1000 for x, y in points)
    assert min(y for _, y in points) < 100  # the spike is at the top
    assert max(y for _, y in points) > 900


def test_values_that_are_not_finite_are_left_out_and_told() -> None:
    html = drawn(Chart("loss", [Line("a", series([1.0, math.nan, 2.0]))]))
    assert len(coordinates(html)) == 2
    assert "1 values are not finite" in html
    assert "no finite values" in drawn(Chart("loss", [Line("a", series([math.inf]))]))


def test_one_point_and_constant_lines_can_be_drawn() -> None:
    for values in ([2.0], [0.0, 0.0, 0.0]):
        html = drawn(Chart("flat", [Line("a", series(values))], zero_based=True))
        assert all(0 <= x <= 1000 and 0 <= y <= 1000 for x, y in coordinates(html))


def test_names_are_escaped() -> None:
    name = "<i>'a' & \"b\"</i>"
    html = drawn(Chart(name, [Line(name, series([0.5, 0.25])), Line("z", series([1.0]))], metric=name))
    assert "<i>" not in html
    assert "data-metric='&lt;i&gt;&#39;a&#39; &amp; &#34;b&#34;&lt;/i&gt;'" in html


def test_numbers_for_the_script_are_exact_and_share_their_steps() -> None:
    lines = [Line("a", series([0.123456789, 2.0])), Line("b", series([3.0, 4.0])), Line("c", series([5.0]))]
    found = numbers([Chart("x", lines[:1]), Chart("y", lines[1:])], 100)
    assert found["steps"] == [[0, 1], [0]]
    drawn_lines = [line for chart in found["charts"] for line in chart["lines"]]
    assert [(line["name"], line["steps"], line["means"]) for line in drawn_lines] == [
        ("a", 0, [0.12346, 2.0]), ("b", 0, [3.0, 4.0]), ("c", 1, [5.0]),
    ]  # fmt: skip


def test_labels_of_an_axis_tell_its_ticks_apart() -> None:
    assert at_ticks([270.5, 270.75, 271.0, 271.25]) == ["270.50", "270.75", "271.00", "271.25"]
    assert at_ticks([1.0555, 1.056, 1.0565]) == ["1.0555", "1.0560", "1.0565"]
    assert at_ticks([12_000, 12_000.5]) == ["12,000.0", "12,000.5"]
    assert at_ticks([0.0, 0.25, 0.5]) == ["0", "0.25", "0.5"]
    assert at_ticks([270.25]) == ["270.2"]
    assert at_ticks([0.5, 1.0], percent) == ["50 %", "100 %"]


def test_numbers_are_readable() -> None:
    values = [23456.7, 96.134, 0.081254, 2.1e-5, 1e-4, 0, -3.5, 1000.4, math.nan]
    assert [number(v) for v in values] == ["23,457", "96.13", "0.08125", "2.1e-5", "1e-4", "0", "-3.5", "1,000", "nan"]
    lengths = [0, 2.34, 42, 200, 1700, 7500, 273_600]
    assert [duration(s) for s in lengths] == ["0 s", "2.3 s", "42 s", "3 min 20 s", "28 min", "2 h 05 min", "3 d 4 h"]
    assert [percent(p) for p in (0, 0.0004, 0.031, 0.5)] == ["0 %", "0.04 %", "3.1 %", "50 %"]
    assert [seconds(s) for s in (0, 0.0123, 0.59, 42)] == ["0 s", "12.3 ms", "0.59 s", "42 s"]
    assert [size(b) for b in (0, 512, 1536, 3 * 2**40)] == ["0 B", "512 B", "1.5 KiB", "3 TiB"]


# What dichromats see, as linear RGB (Machado et al. 2009, Table 1, severity 1).
VISIONS = {
    "trichromat": np.eye(3),
    "protanope": np.array([[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]),
    "deuteranope": np.array([[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]),
    "tritanope": np.array([[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]]),
}


def colours(theme: int) -> tuple[np.ndarray, np.ndarray]:
    """Linear RGB of the card, [3], and of the lines, [COLOURS, 3], in the light (0) or the dark (1) theme."""
    css = (TEMPLATES / "page.css").read_text()

    def linear(name: str) -> list[float]:
        found = re.search(rf"--{name}: light-dark\(#(\w{{6}}), #(\w{{6}})\)", css)
        assert found is not None
        levels = [int(found[1 + theme][i : i + 2], 16) / 255 for i in (0, 2, 4)]
        return [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels]

    return np.array(linear("card")), np.array([linear(f"s{i + 1}") for i in range(COLOURS)])


def oklab(rgb: np.ndarray) -> np.ndarray:
    cones = np.array([[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]])
    lab = np.array([[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]])
    return np.cbrt(np.clip(rgb, 0, 1) @ cones.T) @ lab.T


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("vision", VISIONS)
def test_lines_are_told_apart_by_any_eye(vision: str, theme: int) -> None:
    _, lines = colours(theme)
    seen = oklab(lines @ VISIONS[vision].T)
    assert all(np.linalg.norm(a - b) > 0.1 for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize("theme", [0, 1])
def test_lines_stand_out_from_the_card(theme: int) -> None:
    """WCAG 2.2, 1.4.11: graphics need a contrast of 3 to 1."""
    card, lines = colours(theme)
    luminance = np.array([0.2126, 0.7152, 0.0722])
    for line in lines:
        lighter, darker = sorted((float(line @ luminance), float(card @ luminance)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 3
