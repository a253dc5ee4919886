"""Which metrics the report draws, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from evaluation.charts import Chart, Format, Line, draw, smooth
from evaluation.numbers import duration, gibibytes, number, percent, whole
from evaluation.results import Result
from evaluation.run_record import RunRecord, Series

COLOURS = 6
MOST_LINES = 6
DECILES = "train/loss_decile_"
DRAWN_DECILES = (0, 1, 3, 5, 7, 9)  # ten lines can't be told apart
LOOKS = {"eval/psnr": "Held-out PSNR (dB)", "eval/ssim": "Held-out SSIM"}


@dataclass(frozen=True)
class Section:
    """Charts under one heading; in_pairs: two a row, where three would leave a hole."""

    title: str
    charts: list[Markup]
    in_pairs: bool


def chart_sections(run: RunRecord, comparable: list[list[Result]]) -> list[Section]:
    """All charts of a run, each metric once; metrics this file does not know are drawn under "Other metrics".

    comparable: evaluation results, in groups that share a protocol and a feature network.
    """
    shown = {"train/loss", "train/learning_rate", "train/gradient_norm", "speed/images_per_second"}
    shown |= {"data/wait_fraction", "checkpoint/stall_seconds"}
    shown |= {"data/wait_seconds", "speed/step_seconds"}  # are in wait_fraction and images_per_second
    looks = {name: series for name, series in run.metrics.items() if name.startswith("eval/")}
    losses = {name: series for name, series in run.metrics.items() if name.split("/")[-1] == "loss"}
    learning = [_losses(losses), _deciles(run), *(_distances(group) for group in comparable)]
    # Two points or fewer are a table's business.
    learning += [_plain(run, name, LOOKS.get(name, name), number) for name in looks if len(looks[name].steps) > 2]
    learning += [
        _noisy(run, "train/gradient_norm", "Gradient norm", number, logarithmic=True),
        _plain(run, "train/learning_rate", "Learning rate", number),
    ]
    machine = [
        _noisy(run, "speed/images_per_second", "Images per second", number, zero_based=True),
        _noisy(run, "data/wait_fraction", "Waiting for data", percent, "share of each step", zero_based=True),
        _memory(run),
        _plain(run, "checkpoint/stall_seconds", "Checkpoint stalls", duration, "training time lost by each"),
    ]
    rest = [
        _plain(run, name, name, number)
        for name in sorted(run.metrics)
        if name not in shown | losses.keys() | looks.keys() and not name.startswith(("data/bad/", "memory/", DECILES))
    ]
    sections = [
        _section("Learning", learning),
        _section("Speed and memory", machine),
        _section("Other metrics", rest),
    ]
    return [section for section in sections if section.charts]


def _section(title: str, charts: Sequence[Chart | None]) -> Section:
    # A single point is a number, not a line.
    drawn = [chart for chart in charts if chart is not None and any(len(line.x) > 1 for line in chart.lines)]
    narrow = sum(not chart.wide for chart in drawn)
    return Section(title, [draw(chart, whole) for chart in drawn], in_pairs=narrow in (2, 4))


def _window(series: Series) -> int:
    return max(1, len(series.values) // 25)


def _losses(losses: dict[str, Series]) -> Chart | None:
    if not losses:
        return None
    lines: list[Line] = []
    for i, (name, series) in enumerate(sorted(losses.items(), key=lambda item: item[0] != "train/loss")):
        colour = 1 + i % COLOURS
        if name == "train/loss":
            lines.append(Line(name, series.steps, series.values, colour, "faint"))
            lines.append(Line(name, series.steps, smooth(series.values, _window(series)), colour))
        else:
            lines.append(Line(name, series.steps, series.values, colour))
    note = "mean over neighbouring steps; faint: every line logged" if "train/loss" in losses else ""
    return Chart("Loss", lines, number, note, logarithmic=True, wide=True)


def _deciles(run: RunRecord) -> Chart | None:
    deciles = {i: series for i in DRAWN_DECILES if (series := run.series(f"{DECILES}{i}")) is not None}
    if not deciles:
        return None
    lines = [
        Line(f"{10 * i} to {10 * i + 10} %", series.steps, smooth(series.values, _window(series)), 1 + n)
        for n, (i, series) in enumerate(deciles.items())
    ]
    note = "of some tenths of the schedule, from its clean end; unweighed, mean over neighbouring steps"
    return Chart("Loss by timestep", lines, number, note, logarithmic=True, wide=True)


def _distances(group: list[Result]) -> Chart | None:
    if len(group) < 3:
        return None
    steps = [result.step for result in group]
    name = group[0].measured["frechet_name"]
    values = [float(result.measured["frechet"]) for result in group]
    return Chart(name, [Line(name, steps, values)], number, f"protocol {group[0].protocol['name']}", zero_based=True)


def _noisy(
    run: RunRecord,
    metric: str,
    title: str,
    form: Format,
    note: str = "",
    zero_based: bool = False,
    logarithmic: bool = False,
) -> Chart | None:
    series = run.series(metric)
    if series is None:
        return None
    lines = [
        Line(title, series.steps, series.values, 1, "faint"),
        Line(title, series.steps, smooth(series.values, _window(series)), 1),
    ]
    return Chart(title, lines, form, note, zero_based, logarithmic)


def _plain(run: RunRecord, metric: str, title: str, form: Format, note: str = "") -> Chart | None:
    series = run.series(metric)
    if series is None:
        return None
    return Chart(title, [Line(title, series.steps, series.values)], form, note, zero_based=min(series.values) >= 0)


def _memory(run: RunRecord) -> Chart | None:
    ranks = {f"rank{name.removesuffix('_gib')}": series for name, series in run.matching("memory/rank").items()}
    if not ranks:
        return None
    note = "peak, each rank"
    if len(ranks) > MOST_LINES:
        # Hundreds of lines say less than the two that bound them.
        ordered = sorted(ranks.items(), key=lambda item: max(item[1].values))
        ranks = {"highest: " + ordered[-1][0]: ordered[-1][1], "lowest: " + ordered[0][0]: ordered[0][1]}
        note = "peak, of all ranks"
    lines = [
        Line(name.replace("rank", "rank "), series.steps, series.values, 1 + i)
        for i, (name, series) in enumerate(ranks.items())
    ]
    return Chart("Memory", lines, gibibytes, note, zero_based=True)
