"""One page for several runs: their numbers, settings, results and pictures side by side, and charts of all in one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.errors import EvaluationError
from evaluation.numbers import FORMATS, duration, number, whole
from evaluation.panels import IN_TABLES, format_of, groups, look
from evaluation.report_page import MOST_BUCKETS, inline, render
from evaluation.results import Result, write_text
from evaluation.run_metrics import Series
from evaluation.run_record import RunRecord, read_run
from evaluation.thinning import thin

MOST_CAPTIONS = 12
MOST_STEP_PICTURES = 6
WIDEST = 900
"""Pixels of pictures of samples by step, which stand in one column for each run."""
NAMED_IN_FILE = 4
HIGHER = ("psnr", "ssim", "score", "images_per_second", "images_per_second_per_rank", "mfu", "goodput", "accuracy")
LOWER = ("loss", "frechet", "fid", "wait_fraction", "stall_seconds", "step_seconds", "lpips", "restarts", "lost_steps")
"""Ends of the names of metrics that are best when highest, or lowest; of others no best is told."""
ABSENT = "–"


def write_comparison(run_folders: Sequence[Path], output: Path | None = None) -> Path:
    """Writes the page of several runs and returns its path: report-A-B.html beside the first run, if not told.

    Raises FileNotFoundError when one is no run folder, EvaluationError when there are not two different ones.
    """
    if len({folder.resolve() for folder in run_folders}) != len(run_folders) or len(run_folders) < 2:
        named = ", ".join(map(str, run_folders))
        raise EvaluationError(f"run=[{named}]: a comparison is of two or more different run folders")
    runs = _named_apart([read_run(folder) for folder in run_folders], run_folders)
    names = [run.name for run in runs]
    page = render(
        "comparison.html.j2",
        runs,
        groups(runs),
        title=" · ".join(names),
        overview=[*_facts(runs), *_metrics(runs)],
        settings=[{"key": key, "cells": cells} for key, cells in differences(runs)],
        with_config=[run.name for run in runs if run.config is not None],
        results=_results(runs),
        gallery=_gallery(runs),
        steps=_steps(runs),
        notes=sorted({note for run in runs for note in run.attribution}),
    )
    shown = names if len(names) <= NAMED_IN_FILE else [*names[: NAMED_IN_FILE - 1], f"{len(names) - 3}-more"]
    path = output or run_folders[0].resolve().parent / f"report-{'-'.join(map(_file_name, shown))}.html"
    write_text(path, page)
    return path


def differences(runs: Sequence[RunRecord]) -> Iterator[tuple[str, list[str]]]:
    """Settings that are not the same in all runs: dotted key, and the value in each; not names and folders."""
    flat = [dict(_dotted(run.config or {})) for run in runs]
    for key in dict.fromkeys(key for settings in flat for key in settings):
        values = [_text(settings[key]) if key in settings else ABSENT for settings in flat]
        if len(set(values)) > 1 and key not in ("run.name", "run.folder"):
            yield key, values


def _named_apart(runs: Sequence[RunRecord], folders: Sequence[Path]) -> list[RunRecord]:
    """The runs, those of one name under the names of their folders, or their whole paths."""
    for names in ([run.name for run in runs], [folder.resolve().name for folder in folders], list(map(str, folders))):
        if len(set(names)) == len(names):
            break
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._" else "_" for letter in name)[:40]


def _dotted(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _facts(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    facts: dict[str, Callable[[RunRecord], str]] = {
        "steps": lambda run: whole(run.steps),
        "pictures seen": lambda run: whole(run.images_seen),
        "training time": lambda run: duration(run.training_seconds),
    }
    return [
        {"name": name, "code": False, "cells": [{"text": of(run), "best": False, "note": ""} for run in runs]}
        for name, of in facts.items()
    ]


def _metrics(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """A row of each metric: its last value, the best one and its step; the best run is marked."""
    names = sorted({name for run in runs for name in run.metrics if not name.startswith(IN_TABLES)})
    return [_row(name, [run.series(name) for run in runs]) for name in names]


def _row(name: str, series: Sequence[Series | None]) -> dict[str, Any]:
    shown = FORMATS[format_of(name)]
    better = max if name.endswith(HIGHER) else min if name.endswith(LOWER) or "loss" in name else None
    finite = [found.finite() if found is not None else None for found in series]
    lasts = [_last(found) if found is not None and len(found.values) else None for found in finite]
    known = [last for last in lasts if last is not None]
    top = better(known) if better is not None and len(set(known)) > 1 else None
    cells = []
    for found, last in zip(finite, lasts, strict=True):
        if found is None or last is None:
            cells.append({"text": ABSENT, "best": False, "note": ""})
            continue
        cell = {"text": shown(last), "best": last == top, "note": ""}
        if better is not None and len(found.values) > 1:
            at = int(np.argmax(found.values) if better is max else np.argmin(found.values))
            cell["note"] = f"best {shown(float(found.values[at]))} at {whole(int(found.steps[at]))}"
        cells.append(cell)
    return {"name": name, "code": True, "cells": cells}


def _last(series: Series) -> float:
    """The last value, of a noisy series the mean of its last twentieth."""
    if not thin(series, MOST_BUCKETS).noisy:
        return series.last
    return float(series.values[-max(1, len(series.values) // 20) :].mean())


def _results(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """A table of each protocol and feature network, the only numbers that may stand beside each other."""
    tables: dict[tuple[str, str, str], list[tuple[int, Result]]] = {}
    for i, run in enumerate(runs):
        for result in run.results:
            kind = result.protocol["name"], result.protocol_hash, result.measured["features"]
            tables.setdefault(kind, []).append((i, result))
    return [_results_table(kind[0], rows, runs) for kind, rows in sorted(tables.items())]


def _results_table(protocol: str, rows: Sequence[tuple[int, Result]], runs: Sequence[RunRecord]) -> dict[str, Any]:
    first = rows[0][1].measured
    best = min(result.measured["frechet"] for _, result in rows)
    return {
        "protocol": protocol,
        "frechet_name": first["frechet_name"],
        "score_name": first["score_name"],
        "rows": [
            {
                "run": runs[i].name,
                "colour": look(i)[0],
                "dashed": look(i)[1],
                "what": "before training" if result.step == 0 else f"weights: {result.weights}",
                "step": whole(result.step),
                "frechet": number(result.measured["frechet"]),
                "best": result.measured["frechet"] == best,
                "score": number(result.measured["score"]),
            }
            for i, result in rows
        ],
    }


def _gallery(runs: Sequence[RunRecord]) -> dict[str, Any] | None:
    """Of captions that several runs drew: the real picture, and a row of each run with a picture for each scale."""
    drawn = [{row.caption: row for row in run.gallery.rows} if run.gallery else {} for run in runs]
    captions = list(dict.fromkeys(caption for rows in drawn for caption in rows))
    common = [caption for caption in captions if sum(caption in rows for rows in drawn) > 1]
    chosen = (common or captions)[:MOST_CAPTIONS]
    if not chosen:
        return None
    scales = sorted(
        {scale for rows in drawn for caption in chosen if caption in rows for scale in rows[caption].generated}
    )
    cards = []
    for caption in chosen:
        rows = [(i, rows[caption]) for i, rows in enumerate(drawn) if caption in rows]
        cards.append(
            {
                "caption": caption,
                "real": inline(rows[0][1].real, WIDEST),
                "rows": [
                    {
                        "run": runs[i].name,
                        "colour": look(i)[0],
                        "dashed": look(i)[1],
                        "pictures": [
                            inline(row.generated[scale], WIDEST) if scale in row.generated else None for scale in scales
                        ],
                    }
                    for i, row in rows
                ],
            }
        )
    labels = ["no guidance" if scale == 1 else f"guidance {scale:g}" for scale in scales]
    return {"cards": cards, "labels": labels, "across": len(scales), "common": bool(common)}


def _steps(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Each run's pictures of samples by step, evenly chosen, first and last among them."""
    columns = []
    for i, run in enumerate(runs):
        if run.samples:
            places = np.linspace(0, len(run.samples) - 1, min(len(run.samples), MOST_STEP_PICTURES)).round().astype(int)
            pictures = [
                {"label": f"step {whole(run.samples[place].step)}", "source": inline(run.samples[place].path, WIDEST)}
                for place in places.tolist()
            ]
            colour, dashed = look(i)
            columns.append({"run": run.name, "colour": colour, "dashed": dashed, "pictures": pictures})
    return columns
