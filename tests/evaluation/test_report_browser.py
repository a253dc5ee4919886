"""The page in a real browser: drawn without an error, at any width, in both themes, and it answers."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.charts import binary_ticks
from evaluation.numbers import FORMATS
from evaluation.report import write_report
from evaluation.report_comparison import write_comparison
from tests.evaluation import browser

pytestmark = pytest.mark.skipif(browser.found() is None, reason="needs Chromium, which .ci/run installs")

NUMBERS = [0, 1e-9, 2.1e-5, 0.00123, 0.0999, 0.5, 1, 9.999, 12.346, 99.96, 1000.4, 123456.7, -3.5, 86_399, 3e9]


def write_run(folder: Path, steps: int, level: float, every: int = 1) -> Path:
    """A run whose loss falls to `level`, with noise that is the same each time."""
    folder.mkdir(parents=True)
    lines = [
        {
            "step": s, "images_seen": 32 * s, "time": 1e9 + 2 * s, "train/learning_rate": 1e-4 * (1 - s / steps / 2),
            "train/loss": math.exp(-9 * s / steps) + level + 0.2 * level * math.sin(s * s),
            **{f"train/loss_decile_{i}": math.exp(-i - 3 * s / steps) for i in range(10)},
            **{f"memory/rank{i}_gib": 1.5 + i / 10 for i in range(2)}, "odd/<b>name</b>": s,
            "speed/step_seconds": 40.0 if s == 1 else 2.0,
        }
        for s in range(1, steps + 1, every)
    ]  # fmt: skip
    lines[-1]["train/loss"] = math.nan
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(f"run: {{name: {folder.name}}}\nlearning_rate: {{base: {level}}}\n")
    (folder / "starts.jsonl").write_text('{"step": 0}\n{"step": 150}\n{"ste')
    return folder


@pytest.fixture(scope="module")
def page_of_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("one") / "a-run", 400, 0.1))


@pytest.fixture(scope="module")
def page_of_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    lengths = {"first": (300, 0.1), "second-with-a-rather-long-name": (200, 0.2), "third": (5000, 0.3)}
    return write_comparison([write_run(folder / name, *of) for name, of in lengths.items()])


def visit(path: Path, profile: Path, look: Callable[[browser.Page], Awaitable[None]]) -> None:
    """Opens the page, runs `look`, and demands that the console stayed silent."""

    async def visited() -> None:
        async with browser.opened(path, profile) as page:
            await page.until("document.querySelector('#controls:not([hidden])') !== null")
            await look(page)
            await page.value("new Promise(requestAnimationFrame)")
            assert page.errors == []

    asyncio.run(visited())


LOSS = "document.querySelector(\"[data-metric='train/loss']\")"


async def point_at(page: browser.Page, share: float, kind: str = "mouseMoved", **more: Any) -> None:
    """Moves the mouse to a place across the chart of the loss, and waits for it to be drawn."""
    await page.value(f"{LOSS}.querySelector('.plot').scrollIntoView({{block: 'center'}})")
    await page.until("charts.filter(chart => chart.visible && !chart.stale && chart.left).length > 1")
    await page.until(f"charts.some(chart => chart.figure === {LOSS} && chart.visible && !chart.stale)")
    area = await page.value(
        f"(r => [r.left, r.top, r.width, r.height])({LOSS}.querySelector('.plot').getBoundingClientRect())"
    )
    place = {"x": area[0] + share * area[2], "y": area[1] + area[3] / 2}
    await page.call("Input.dispatchMouseEvent", type=kind, **place, **more)
    await page.value("new Promise(requestAnimationFrame)")


def test_numbers_are_written_as_in_python(page_of_one: Path, tmp_path: Path) -> None:
    async def look(page: browser.Page) -> None:
        for name, form in FORMATS.items():
            found = await page.value(f"{json.dumps(NUMBERS)}.map(FORMATS.{name})")
            assert found == [form(value) for value in NUMBERS], name
        for high in (3.0, 700.0, 12.4 * 2**20, 162.0 * 2**20):
            assert await page.value(f"binaryTicks(0, {high}, 4)") == binary_ticks(0, high, 4)

    visit(page_of_one, tmp_path, look)


def test_a_robust_axis_is_cut_as_in_python(page_of_one: Path, tmp_path: Path) -> None:
    assert "axis cut, values go up to 40 s" in page_of_one.read_text()

    async def look(page: browser.Page) -> None:
        drawn = "(chart => { chart.draw(); return chart.values(); })"
        found = await page.value(f"{drawn}(charts.find(chart => chart.figure.dataset.metric === 'speed/step_seconds'))")
        assert found == [0, pytest.approx(2.1), False]

    visit(page_of_one, tmp_path, look)


def test_the_pointer_tells_values_and_dragging_zooms(page_of_one: Path, tmp_path: Path) -> None:
    async def look(page: browser.Page) -> None:
        await point_at(page, 0.5)
        assert await page.value(f"{LOSS}.querySelector('.tip b').textContent") == "step 200"
        told = float(await page.value(f"{LOSS}.querySelector('.tip em').textContent"))
        assert 0.1 < told < 0.13  # smoothed: the level that noise of 0.02 goes around
        assert await page.value("document.querySelectorAll('.hair').length") > 1  # the same moment in other charts

        ticks = f"[...{LOSS}.querySelectorAll('.x')].map(tick => Number(tick.textContent.replaceAll(',', '')))"
        everything = await page.value(ticks)
        await point_at(page, 0.5, "mousePressed", button="left", buttons=1, clickCount=1)
        await point_at(page, 0.75, buttons=1)
        await point_at(page, 0.75, "mouseReleased", button="left", clickCount=1)
        await page.until(f"!{LOSS}.querySelector('.chosen') && !document.getElementById('reset').disabled")
        zoomed = await page.value(ticks)
        assert min(zoomed) >= 200 and max(zoomed) <= 300
        await page.value("document.getElementById('reset').click()")
        await page.until(f"JSON.stringify({ticks}) === '{json.dumps(everything, separators=(',', ':'))}'")

    visit(page_of_one, tmp_path, look)


def test_controls_change_what_is_drawn(page_of_one: Path, tmp_path: Path) -> None:
    async def look(page: browser.Page) -> None:
        path = f"{LOSS}.querySelector('svg path:last-child').getAttribute('d')"
        await page.value("scrollTo(0, 0); document.getElementById('charts').scrollIntoView()")

        async def changes(action: str) -> None:
            before = await page.value(path)
            await page.value(action)
            await page.until(f"{path} !== {json.dumps(before)}")

        await changes(
            "(s => { s.value = 20; s.dispatchEvent(new Event('input')); })(document.getElementById('smoothing'))"
        )
        await changes(f"{LOSS}.querySelector('.tools button').click()")
        first = f"{LOSS}.querySelector('.x:last-of-type').textContent"
        await page.value("document.querySelector('input[value=images]').click()")
        await page.until(f"{first} === '12,000'")
        await page.value("document.querySelector('input[value=seconds]').click()")
        await page.until(f"{first} === '12.5 min' || {first} === '10 min' || {first} === '12 min'")
        deciles = "document.querySelector(\"[data-metric='train/loss_decile_*']\")"
        await page.value(f"{deciles}.scrollIntoView(); {deciles}.querySelector('button.key').click()")
        await page.until(f"{deciles}.querySelectorAll('svg path').length === 5")
        await page.value(
            "(f => { f.value = 'memory'; f.dispatchEvent(new Event('input')); })(document.getElementById('filter'))"
        )
        assert await page.value("document.querySelectorAll('figure.chart:not([hidden])').length") == 1

    visit(page_of_one, tmp_path, look)


def test_the_keyboard_reaches_what_the_mouse_does(page_of_one: Path, tmp_path: Path) -> None:
    async def look(page: browser.Page) -> None:
        await point_at(page, 0.5)
        await page.value(f"{LOSS}.querySelector('.plot').focus()")
        for key, step in (("ArrowRight", "step 204"), ("ArrowLeft", "step 200")):
            await page.call("Input.dispatchKeyEvent", type="keyDown", key=key)
            assert await page.value(f"{LOSS}.querySelector('.tip b').textContent") == step
        await page.call("Input.dispatchKeyEvent", type="keyDown", key="+", text="+")
        await page.until("!document.getElementById('reset').disabled")
        await page.call("Input.dispatchKeyEvent", type="keyDown", key="Escape")
        await page.until("document.getElementById('reset').disabled")

    visit(page_of_one, tmp_path, look)


def test_runs_are_switched_off_and_on(page_of_three: Path, tmp_path: Path) -> None:
    async def look(page: browser.Page) -> None:
        await point_at(page, 0.02)
        assert await page.value(f"{LOSS}.querySelectorAll('.tip em').length") == 3
        await page.value("document.querySelector('input[name=run][value=\"2\"]').click()")
        last = f"{LOSS}.querySelector('.x:last-of-type').textContent"
        await page.until(f"{last} === '300'")  # the axis is that of the runs left
        await point_at(page, 0.5)
        assert await page.value(f"{LOSS}.querySelectorAll('.tip em').length") == 2
        await page.value("document.querySelector('input[name=run][value=\"2\"]').click()")
        await page.until(f"{last} === '5,000'")
        # 5,000 steps are in buckets, whose extremes are drawn too.
        assert await page.value(f"{LOSS}.querySelectorAll('path.band').length") == 1

    visit(page_of_three, tmp_path, look)


@pytest.mark.parametrize("runs", ["one", "three"])
def test_nothing_overlaps_or_runs_out_of_the_page(
    page_of_one: Path, page_of_three: Path, runs: str, tmp_path: Path
) -> None:
    async def look(page: browser.Page) -> None:
        for theme, width in itertools.product(("light", "dark"), (400, 1280, 1920)):
            await page.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
            )
            await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
            background = await page.value("getComputedStyle(document.body).backgroundColor")
            assert (background == "rgb(20, 20, 20)") == (theme == "dark"), (theme, width)
            assert await page.value("document.documentElement.scrollWidth") <= width, (theme, width)
            for i in range(await page.value("charts.length")):
                await page.value(f"charts[{i}].plot.scrollIntoView(); new Promise(requestAnimationFrame)")
            assert await page.value(OVERLAPS) == [], (theme, width)

    visit({"one": page_of_one, "three": page_of_three}[runs], tmp_path, look)


# Pairs of texts whose boxes cover each other, in each chart and among the controls.
OVERLAPS = """[...document.querySelectorAll('figure.chart, #controls')].flatMap(area => {
  const kinds = 'b, code, .note, .key, .x, .y, button, legend, output, input[type=range], input[type=search]';
  const texts = [...area.querySelectorAll(kinds)];
  const lines = text => {
    const range = document.createRange();
    range.selectNodeContents(text);
    return text.matches('button, input') ? [text.getBoundingClientRect()] : [...range.getClientRects()];
  };
  const boxes = texts.map(lines), found = [];
  const cover = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2;
  boxes.forEach((these, i) => boxes.forEach((those, j) => {
    if (i >= j || texts[i].contains(texts[j]) || texts[j].contains(texts[i])) return;
    if (these.some(a => those.some(b => cover(a, b)))) found.push(`${texts[i].textContent} | ${texts[j].textContent}`);
  }));
  return found;
})"""
