"""Which charts a page has: metrics of one run or several, in groups by the prefix of their names, under any names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.charts import COLOURS, Chart, Line
from evaluation.results import Result
from evaluation.run_metrics import Series
from evaluation.run_record import RunRecord, natural

GROUPS = {
    "train": "Learning", "eval": "Evaluation", "speed": "Speed", "data": "Data", "memory": "Memory",
    "checkpoint": "Checkpoints", "run": "The run itself",
}  # fmt: skip
"""Titles of groups, in their order; further ones follow under their own names."""
TITLES = {
    "data/wait_fraction": "Waiting for data",
    "data/wait_seconds": "Waiting for data, seconds",
    "checkpoint/stall_seconds": "Checkpoint stalls",
    "eval/psnr": "Held-out PSNR (dB)",
    "eval/ssim": "Held-out SSIM",
    "run/lost_steps": "Lost steps",
}
"""Those that a metric's name doesn't make by itself."""
FIRST = ("train/loss", "train/gradient_norm", "train/learning_rate", "speed/images_per_second", "speed/mfu")
"""Begin their groups."""
WIDE = ("train/loss", "train/loss_decile")
RANKS = "memory/rank"
LOOK_SECONDS = "eval/seconds"
"""Alone, says nothing of how good a model is; what looks cost is told by where the time went."""
IN_TABLES = "data/bad/"
WORDS = {"psnr": "PSNR", "ssim": "SSIM", "mfu": "MFU", "ema": "EMA", "kl": "KL", "fid": "FID", "gpu": "GPU", "gib": ""}


@dataclass(frozen=True)
class Family:
    """Metrics that are drawn in one chart: those that the pattern matches; its group, if any, tells the lines apart.

    key: where the chart stands among others, as a metric's name.
    """

    pattern: str
    key: str
    title: str
    metric: str
    note: str = ""


FAMILIES = (
    Family(
        r"train/loss_decile_(\d+)", "train/loss_decile", "Loss by timestep", "train/loss_decile_*",
        "tenths of the schedule, from its clean end; unweighed",
    ),
    Family(r"train/accuracy_decile_(\d+)", "train/accuracy_decile", "Accuracy by timestep", "train/accuracy_decile_*"),
    Family(r"eval/accuracy_decile_(\d+)", "eval/accuracy_decile", "Accuracy by timestep", "eval/accuracy_decile_*"),
    Family(r"train/loss_source_(.+)", "train/loss_source", "Loss by source", "train/loss_source_*"),
    Family(r"memory/(rank\d+)_gib", RANKS, "Memory", "memory/rank*_gib", "peak of each rank"),
    Family(r"speed/(\w+)_seconds", "speed/seconds", "Seconds of a step", "speed/*_seconds"),
)  # fmt: skip
SLOWEST = "speed/slowest_rank"
SHARES = 40
"""Parts of a run, of each of which it is told how often a rank was the slowest."""
DRAWN_DECILES = (0, 1, 3, 5, 7, 9)
"""Ten lines can't be told apart."""


@dataclass(frozen=True)
class Panel:
    """What one chart is of: metrics by name, with what tells their lines apart.

    key: where it stands among others, as a metric's name. metric: the names, in short. pattern: what matches them all,
    where they are a family.
    """

    key: str
    title: str
    metric: str
    members: dict[str, str]
    pattern: str | None = None
    note: str = ""

    @property
    def group(self) -> str:
        """The prefix of the names."""
        return self.key.split("/")[0]

    @property
    def logarithmic(self) -> bool:
        """Whether its values are best seen so."""
        return self.group == "train" and ("loss" in self.key or "norm" in self.key)


@dataclass(frozen=True)
class Group:
    """Charts under one heading; in_pairs: two a row, where three would leave a hole."""

    title: str
    charts: list[Chart]

    @property
    def in_pairs(self) -> bool:
        return sum(not chart.wide for chart in self.charts) in (1, 2, 4)


def panels(names: Sequence[str], apart: bool) -> dict[str, list[Panel]]:
    """Panels by the title of their group, in order, each metric in one; apart: members of families in panels of their
    own, but for the memory of ranks."""
    left = [name for name in names if not name.startswith(IN_TABLES)]
    found = []
    for family in [*FAMILIES, *_families(left)]:
        members = {name: match[1] for name in left if (match := re.fullmatch(family.pattern, name))}
        if len(members) > 1:
            left = [name for name in left if name not in members]
            found += _family(family, members, apart)
    found += [Panel(name, title(name), name, {name: ""}) for name in left]
    found.sort(key=_place)
    prefixes = {panel.group for panel in found}
    order = [*(prefix for prefix in GROUPS if prefix in prefixes), *sorted(prefixes - GROUPS.keys())]
    return {GROUPS.get(prefix, prefix): [panel for panel in found if panel.group == prefix] for prefix in order}


def groups(runs: Sequence[RunRecord], comparable: Sequence[Sequence[Result]] = ()) -> list[Group]:
    """All charts of runs, each metric once: of one run, families in one chart, its lines in colours; of several, each
    run in its colour, and the members of families in charts of their own.

    comparable: evaluation results of a single run, in groups that share a protocol and a feature network.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    charts = {
        heading: [chart for panel in members if (chart := _chart(panel, runs)) is not None]
        for heading, members in panels(names, apart=len(runs) > 1).items()
    }
    distances = [_distances(group) for group in comparable if len(group) > 2]
    evaluation = GROUPS["eval"]
    looks = [chart for chart in charts.get(evaluation, []) if not any(_same(chart, other) for other in distances)]
    if [chart.metric for chart in looks] == [LOOK_SECONDS] and not distances:
        looks = []
    charts[evaluation] = distances + looks
    order = [*GROUPS.values(), *charts]
    return [Group(heading, charts[heading]) for heading in sorted(charts, key=order.index) if charts[heading]]


def title(metric: str) -> str:
    """A metric's name in words: train/gradient_norm → Gradient norm."""
    if metric in TITLES:
        return TITLES[metric]
    words = [WORDS.get(word, word) for word in metric.split("/", 1)[1].replace("/", ", ").split("_")]
    text = " ".join(word for word in words if word)
    return text[:1].upper() + text[1:]


def format_of(metric: str) -> str:
    """How a metric's values are written, going by the end of its name."""
    ends = {
        ("_fraction", "_share", "mfu", "goodput", "/accuracy"): "percent", ("_gib",): "gibibytes",
        ("seconds",): "seconds", ("bytes", "bytes_per_second"): "bytes",
    }  # fmt: skip
    return next((form for suffixes, form in ends.items() if metric.endswith(suffixes)), "number")


def look(run: int) -> tuple[int, bool]:
    """Colour, and whether its lines are dashed, of the run with this number."""
    return 1 + run % COLOURS, run // COLOURS % 2 == 1


def _families(names: Sequence[str]) -> list[Family]:
    """One for each prefix of two parts, as of data/epoch/drawings."""
    prefixes = dict.fromkeys(name.rpartition("/")[0] for name in names if name.count("/") > 1)
    return [Family(re.escape(p) + r"/([^/]+)", p, title(p), f"{p}/*") for p in prefixes]


def _family(family: Family, members: dict[str, str], apart: bool) -> list[Panel]:
    ordered = dict(sorted(members.items(), key=lambda item: natural(item[1])))
    if family.key.endswith("_decile"):
        ordered = {name: f"{10 * int(member)} to {10 * int(member) + 10} %" for name, member in ordered.items()}
    ordered = {name: member.replace("_", " ") for name, member in ordered.items()}
    if apart and family.key != RANKS:
        return [Panel(f"{family.key}/{n}", f"{family.title}: {m}", n, {n: m}) for n, m in ordered.items()]
    return [Panel(family.key, family.title, family.metric, ordered, family.pattern, family.note)]


def _place(panel: Panel) -> tuple[bool, int, list[tuple[int, str]]]:
    """Wide ones first, so that they leave no holes; then those of FIRST; then by name."""
    return panel.key not in WIDE, FIRST.index(panel.key) if panel.key in FIRST else len(FIRST), natural(panel.key)


def _chart(panel: Panel, runs: Sequence[RunRecord]) -> Chart | None:
    """The panel's metrics of all runs; None where it would say nothing."""
    if panel.key == SLOWEST:
        return _slowest(panel, runs)
    note = panel.note
    if len(runs) > 1 or len(panel.members) == 1:
        lines = [
            Line(run.name, series, number, *look(number))
            for number, run in enumerate(runs)
            if (series := _highest([run.metrics[name] for name in panel.members if name in run.metrics])) is not None
        ]
        note = "peak, of the rank that needs most" if panel.key == RANKS and len(panel.members) > 1 else note
    elif panel.key == RANKS and len(panel.members) > COLOURS:
        # Hundreds of lines say less than the two that bound them.
        ranks = sorted((runs[0].metrics[name] for name in panel.members), key=_peak)
        lines = [Line("highest", ranks[-1], 0, 1), Line("lowest", ranks[0], 0, 2)]
        note = "peak, of the ranks that need most and least"
    else:
        shown = _told_apart(list(panel.members))
        lines = [Line(panel.members[name], runs[0].metrics[name], 0, *look(i)) for i, name in enumerate(shown)]
        left = f"{len(shown)} of {len(panel.members)}" if len(shown) < len(panel.members) else ""
        note = "; ".join(filter(None, (note, left)))
    # A single point is a number, not a line; two looks at a model are a table's business.
    if not any(len(line.series.steps) >= (3 if panel.group == "eval" else 2) for line in lines):
        return None
    return Chart(
        panel.title,
        lines,
        panel.metric,
        format_of(next(iter(panel.members))),
        note,
        robust=panel.group == "speed",
        zero_based=panel.group not in ("train", "eval") and all(_lowest(line.series) >= 0 for line in lines),
        logarithmic=panel.logarithmic,
        wide=panel.key in WIDE,
        legend=len(runs) > 1,
    )


def _slowest(panel: Panel, runs: Sequence[RunRecord]) -> Chart | None:
    """How often a rank was the slowest: each of one run's, of several runs' the one that was so most often.

    None of two steps or fewer for each part of the run.
    """
    lines = []
    for number, run in enumerate(runs):
        series = run.metrics.get(SLOWEST)
        if series is None or len(series.steps) < 2 * SHARES:
            continue
        ranks, parts = np.unique(series.values), np.array_split(np.arange(len(series.steps)), SHARES)
        steps = np.array([series.steps[part[-1]] for part in parts])
        shares = {int(rank): np.array([(series.values[part] == rank).mean() for part in parts]) for rank in ranks}
        if len(runs) > 1:
            lines.append(Line(run.name, Series(steps, np.max([*shares.values()], axis=0)), number, *look(number)))
            continue
        often = sorted(sorted(shares, key=lambda rank: -shares[rank].sum())[:COLOURS])
        lines = [Line(f"rank{rank}", Series(steps, shares[rank]), 0, *look(i)) for i, rank in enumerate(often)]
    if not lines:
        return None
    note = "share of steps, of the rank that is it most often" if len(runs) > 1 else "share of steps"
    return Chart(panel.title, lines, SLOWEST, "percent", note, zero_based=True, legend=True)


def _same(chart: Chart, other: Chart) -> bool:
    """Whether a line's values are all in another's, at their steps."""
    if len(chart.lines) != 1:
        return False
    one, found = chart.lines[0].series, other.lines[0].series
    known = dict(zip(found.steps.tolist(), found.values.tolist(), strict=True))
    return all(known.get(step) == value for step, value in zip(one.steps.tolist(), one.values.tolist(), strict=True))


def _told_apart(names: list[str]) -> list[str]:
    """As many as can be: of the deciles some, spread over the schedule."""
    spread = [name for name in names if name.endswith(tuple(f"_decile_{i}" for i in DRAWN_DECILES))]
    return spread if len(spread) == len(DRAWN_DECILES) else names[: 2 * COLOURS]


def _highest(members: Sequence[Series]) -> Series | None:
    return max(members, key=_peak, default=None)


def _peak(series: Series) -> float:
    return float(series.finite().values.max(initial=-np.inf))


def _lowest(series: Series) -> float:
    return float(series.finite().values.min(initial=0.0))


def _distances(group: Sequence[Result]) -> Chart:
    steps = np.array([result.step for result in group])
    values = np.array([float(result.measured["frechet"]) for result in group])
    name, protocol = group[0].measured["frechet_name"], group[0].protocol["name"]
    return Chart(name, [Line(name, Series(steps, values))], "", "number", f"protocol {protocol}", zero_based=True)
