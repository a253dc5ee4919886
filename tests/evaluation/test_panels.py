"""Every metric has one place on a page, whatever its name."""

import numpy as np
import pytest

from evaluation.charts import COLOURS
from evaluation.panels import DRAWN_DECILES, GROUPS, SHARES, format_of, groups, panels, title
from evaluation.results import Result
from evaluation.run_metrics import Series
from evaluation.run_record import RunRecord

NAMES = [
    "train/loss", *(f"train/loss_decile_{i}" for i in range(10)), "train/loss_source_a", "train/loss_source_b_c",
    "speed/step_seconds", "speed/forward_seconds", "data/epoch/a", "data/epoch/b", "data/wait_fraction",
    "memory/rank0_gib", "memory/rank10_gib", "memory/rank2_gib", "run/goodput", "zeta/x", "alpha/x/y", "alpha/z",
    "data/bad/truncated",
]  # fmt: skip


def record(name: str, names: list[str], points: int = 5) -> RunRecord:
    def series(level: int) -> Series:
        return Series(np.arange(points), np.full(points, float(level)))

    metrics = {metric: series(i) for i, metric in enumerate(names)}
    return RunRecord(name, metrics, None, None, [], points, 0, 0.0, 0, [], None, [], None, [])


@pytest.mark.parametrize("apart", [False, True])
def test_each_metric_is_in_one_panel_of_its_group(apart: bool) -> None:
    found = panels(NAMES, apart)
    members = [name for group in found.values() for panel in group for name in panel.members]
    assert sorted(members) == sorted(name for name in NAMES if name != "data/bad/truncated")
    assert list(found) == ["Learning", "Speed", "Data", "Memory", "The run itself", "alpha", "zeta"]
    keys = [panel.key for group in found.values() for panel in group]
    assert len(set(keys)) == len(keys)
    for heading, group in found.items():
        for panel in group:
            assert GROUPS.get(panel.group, panel.group) == heading
            assert all(name.startswith(f"{panel.group}/") for name in panel.members)


def test_of_one_run_families_share_a_chart() -> None:
    charts = {chart.metric: chart for group in groups([record("a", NAMES)]) for chart in group.charts}
    assert len(charts["train/loss_decile_*"].lines) == len(DRAWN_DECILES)
    assert [line.name for line in charts["memory/rank*_gib"].lines] == ["rank0", "rank2", "rank10"]
    assert {line.name for line in charts["train/loss_source_*"].lines} == {"a", "b c"}
    assert {line.name for line in charts["speed/*_seconds"].lines} == {"step", "forward"}
    assert charts["data/epoch/*"].title == "Epoch"


def test_of_several_runs_each_chart_has_a_line_a_run() -> None:
    runs = [record("a", NAMES), record("b", NAMES[:1]), record("c", NAMES)]
    for group in groups(runs):
        for chart in group.charts:
            colours = {line.name: line.colour for line in chart.lines}
            assert len(colours) == len(chart.lines)
            assert colours.items() <= {"a": 1, "b": 2, "c": 3}.items()


def test_many_ranks_are_told_by_the_two_that_bound_them() -> None:
    names = [f"memory/rank{i}_gib" for i in range(512)]
    (group,) = groups([record("a", names)])
    assert [(line.name, line.series.last) for line in group.charts[0].lines] == [("highest", 511.0), ("lowest", 0.0)]


def test_a_single_point_is_no_chart() -> None:
    assert groups([record("a", ["train/loss"], points=1)]) == []
    assert groups([record("a", ["eval/psnr"], points=2)]) == []  # two looks are a table's business


def ranks_in_turn(name: str, points: int, ranks: int) -> RunRecord:
    found = record(name, ["speed/slowest_rank"], points)
    found.metrics["speed/slowest_rank"] = Series(np.arange(points), np.arange(points) % ranks * 1.0)
    return found


def test_of_the_slowest_rank_shares_are_drawn() -> None:
    [group] = groups([ranks_in_turn("a", 400, 2)])
    [chart] = group.charts
    assert [line.name for line in chart.lines] == ["rank0", "rank1"] and chart.format == "percent"
    for line in chart.lines:
        assert line.series.values == pytest.approx(0.5) and len(line.series.steps) == SHARES
    [group] = groups([ranks_in_turn("a", 4000, 100)])
    assert len(group.charts[0].lines) == COLOURS
    [group] = groups([ranks_in_turn("a", 400, 2), ranks_in_turn("b", 400, 1)])
    assert [(line.name, line.series.last) for line in group.charts[0].lines] == [("a", 0.5), ("b", 1.0)]
    assert groups([ranks_in_turn("a", SHARES, 2)]) == []  # too few to have a share of


def measured(step: int, frechet: float) -> Result:
    return Result(step, "ema", {"name": "openmoji"}, "h", {"frechet_name": "Distance", "frechet": frechet}, 1.0, [], {})


def test_evaluation_shows_distances_once_and_seconds_never_alone() -> None:
    """The metric of monitors and the results that they wrote are the same numbers."""
    run = record("a", ["eval/net_frechet", "eval/seconds", "data/retries"], points=4)
    run.metrics["eval/net_frechet"] = Series(np.arange(4), np.array([4.0, 3.0, 2.0, 1.0]))
    results = [measured(step, 4.0 - step) for step in range(4)]
    found = {group.title: [chart.title for chart in group.charts] for group in groups([run], [results])}
    assert list(found) == ["Evaluation", "Data"]
    assert found["Evaluation"] == ["Distance", "Seconds"]
    found = {group.title: [chart.title for chart in group.charts] for group in groups([run])}
    assert found["Evaluation"] == ["Net frechet", "Seconds"]
    assert groups([record("a", ["eval/seconds"])]) == []


def test_names_become_words_and_formats() -> None:
    names = ["train/gradient_norm", "speed/mfu", "train/ema_decay", "new/some_thing", "data/wait_fraction"]
    assert [title(name) for name in names] == ["Gradient norm", "MFU", "EMA decay", "Some thing", "Waiting for data"]
    formats = {
        "run/goodput": "percent", "memory/peak_gib": "gibibytes", "checkpoint/bytes": "bytes",
        "data/bytes_per_second": "bytes", "speed/step_seconds": "seconds", "train/loss": "number",
    }  # fmt: skip
    assert {name: format_of(name) for name in formats} == formats
