"""What a run leaves when it ends while it is looked at."""

from __future__ import annotations

from pathlib import Path

from tests.training.conftest import OnRanks
from tests.training.runs import train
from training.distributed import Distributed


class Killed(Exception):
    """The process ends here."""


class Looks:
    """Notes the steps at which it is asked, and ends the process at one of them."""

    def __init__(self, ends_at: int | None = None) -> None:
        self.ends_at = ends_at
        self.steps: list[int] = []

    def look(self, step: int) -> dict[str, float]:
        self.steps.append(step)
        if step == self.ends_at:
            raise Killed
        return {"eval/seen": float(step)}


def killed_in_the_last_look(ranks: Distributed, overrides: list[str], folder: Path) -> dict[str, object]:
    """A run of 3 steps, ended in its last look, and the same command twice more: the looks of each, and the rows."""
    looks = [Looks(ends_at=3), Looks(), Looks()]
    began: list[int] = []
    rows: list[dict[str, float]] = []
    for monitor in looks:
        try:
            _, rows = train(ranks, [*overrides, "checkpoint.every=100"], folder, 3, began.append, monitor)
        except Killed:
            continue
    return {"looks": [monitor.steps for monitor in looks], "began": began, "rows": rows}


def test_nothing_is_lost_in_the_last_look_which_is_made_again(
    on_ranks: OnRanks, tiny_diffusion: list[str], tmp_path: Path
) -> None:
    found = on_ranks(2, killed_in_the_last_look, tiny_diffusion, tmp_path)
    assert found["began"] == [0, 3, 3]
    assert found["looks"] == [[0, 1, 2, 3], [3], []]
    assert [row["step"] for row in found["rows"]] == [0, 1, 2, 3]
    assert found["rows"][-1]["eval/seen"] == 3
