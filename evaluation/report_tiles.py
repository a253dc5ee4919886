"""The tiles at the head of a run's page."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.goodput import Goodput
from evaluation.numbers import duration, number, percent, whole
from evaluation.results import Result
from evaluation.run_record import RunRecord

MOST_ACROSS = 8


def tiles(run: RunRecord, comparable: list[list[Result]], spent: Goodput) -> list[dict[str, Any]]:
    """What is worth knowing first, as far as the run tells: name, value, note, and whether it is big.

    comparable: results in groups that may be compared, in order of steps. spent: where the run's time went.
    """
    found: list[dict[str, Any]] = []

    def tile(name: str, value: str, note: str = "", big: bool = False) -> None:
        found.append({"name": name, "value": value, "note": note, "big": big})

    for group in comparable:
        before, after = group[0].measured["frechet"], group[-1].measured["frechet"]
        name = group[0].measured["frechet_name"]
        if len(group) > 1:
            times = f"{before / after:.1f} times lower: " if after < before else ""
            tile("Distance to real pictures", f"{number(before)} → {number(after)}", times + name, big=True)
        else:
            tile("Distance to real pictures", number(after), name, big=True)
    ranks = sum(bool(re.fullmatch(r"rank\d+_gib", name)) for name in run.matching("memory/"))
    tile("Steps", whole(run.steps), f"on {ranks} ranks" if ranks > 1 else "")
    tile("Pictures seen", whole(run.images_seen))
    paused = f"{run.pauses} pause{'s' if run.pauses > 1 else ''} not counted" if run.pauses else ""
    tile("Training time", duration(run.training_seconds), paused)
    speed, wait = run.series("speed/images_per_second"), run.series("data/wait_fraction")
    if speed is not None:
        tile("Images per second", number(float(np.median(speed.values))), "median")
    if (mfu := run.series("speed/mfu")) is not None:
        tile("MFU", percent(float(np.median(mfu.values))), "median")
    if wait is not None:
        tile("Waiting for data", percent(float(wait.values.mean())), "of each step, mean")
    stalls = run.series("checkpoint/stall_seconds")
    if stalls is not None:
        count = f"{len(stalls.values)} checkpoint{'s' if len(stalls.values) > 1 else ''}"
        tile("Checkpoint stall", duration(float(stalls.values.sum())), f"in all, {count}")
    if spent.productive > 0 and spent.wall > 0:
        notes = [f"{spent.restarts} restart{'s' if spent.restarts != 1 else ''}"]
        notes += [f"{duration(spent.stopped)} stopped"] if spent.stopped else []
        tile("Goodput", percent(spent.fraction), ", ".join(notes))
    return found


def layout(tiles: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How tiles fill their rows: on a wide screen `columns`, of which the first tile has `first`; on a narrow one two,
    of which the last tile has `last`."""
    cells = sum(2 if tile["big"] else 1 for tile in tiles)
    rows = math.ceil(cells / MOST_ACROSS)
    columns = math.ceil(cells / rows)
    first = (2 if tiles[0]["big"] else 1) + rows * columns - cells
    return {"columns": columns, "first": first, "last": 1 + cells % 2}
