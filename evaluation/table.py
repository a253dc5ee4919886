"""Measured numbers beside published ones, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.numbers import number

Row = tuple[str, Mapping[str, float | None]]


def columns(measured: Mapping[str, Any]) -> dict[str, float | None]:
    """All numbers of a result's `measured`, by the names they may be quoted under."""
    first = {measured["frechet_name"]: measured["frechet"], measured["score_name"]: measured["score"]}
    return {**first, **{name: value["value"] for name, value in measured.get("others", {}).items()}}


def published(paper: Sequence[Mapping[str, Any]], measured: Mapping[str, Any]) -> list[Row]:
    """Rows of published numbers; those of FID and IS stand where the measured ones do only if those are FID and IS."""
    if (measured["frechet_name"], measured["score_name"]) != ("FID", "Inception Score"):
        return []
    return [
        (
            f"published: {row['name']}",
            {"FID": row.get("frechet"), "Inception Score": row.get("score"), **row.get("others", {})},
        )
        for row in paper
    ]


def table(rows: Sequence[Row]) -> str:
    """Rows below a line of names; a number that a row doesn't have is a dash."""
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    names = [name for name in names if any(values.get(name) is not None for _, values in rows)]
    cells = [["", *names]]
    for title, values in rows:
        found = [values.get(name) for name in names]
        cells.append([title, *("–" if value is None else number(value) for value in found)])
    widths = [max(len(line[i]) for line in cells) for i in range(len(names) + 1)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    )
