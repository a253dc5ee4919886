"""Where a step's time went, and how large the update was."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tests.training.conftest import OnRanks
from tests.training.runs import train
from training import stopwatch
from training.distributed import Distributed
from training.meter import Meter, own_seconds, slowest, split
from training.stopwatch import Stopwatch

CPU = torch.device("cpu")


def test_a_stopwatch_adds_up_until_it_is_asked() -> None:
    watch = Stopwatch(CPU)
    for _ in range(2):
        with watch.part("a"):
            time.sleep(0.02)
            with watch.part("b"):
                time.sleep(0.01)
    taken = watch.take()
    assert 0.06 <= taken["a"] < 0.5 and 0.02 <= taken["b"] < taken["a"]
    assert not watch.take()


class Event:
    """As torch.cuda's, of a GPU that has come as far as `now`."""

    now = done = 0.0
    made = 0

    def __init__(self, enable_timing: bool) -> None:
        Event.made += 1

    def record(self) -> None:
        self.at = Event.now

    def query(self) -> bool:
        return self.at <= Event.done

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)


def test_of_a_gpu_only_what_it_has_done_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch.torch.cuda, "Event", Event)
    watch = Stopwatch(torch.device("cuda"))
    for _ in range(3):
        with watch.part("forward"):
            Event.now += 2.0
        with watch.part("backward"):
            Event.now += 3.0
    Event.done = 7.0
    assert watch.take() == {"forward": 4.0, "backward": 3.0}
    Event.done = 15.0
    assert watch.take() == {"forward": 2.0, "backward": 6.0}
    made = Event.made
    with watch.part("forward"):
        pass
    assert Event.made == made, "events are used again"


def test_the_parts_are_the_whole_step() -> None:
    seconds = {"step": 8.0, "data": 1.5, "backward": 3.0, "optimizer": 2.0, "communication": 1.0}
    found = split(seconds, 9.0)
    assert found["speed/forward_seconds"] == 1.5
    assert found["speed/other_seconds"] == 1.0
    assert found.pop("speed/communication_seconds") == 1.0, "of the other parts, not beside them"
    assert sum(found.values()) == 9.0


def test_a_gpu_that_is_not_there_yet_has_no_parts() -> None:
    assert split({"data": 1.0}, 9.0) == {}


def test_the_slowest_rank_is_that_with_the_most_of_its_own() -> None:
    waits = {"step": 8.0, "communication": 5.0}
    works = {"step": 8.0, "communication": 1.0}
    assert slowest([own_seconds(seconds) for seconds in (waits, works, waits)]) == {
        "speed/slowest_rank": 1,
        "speed/slowest_behind_seconds": 4.0,
    }
    on_gpu = {"step": 8.0, "backward": 5.0, "optimizer": 1.0}
    assert own_seconds(on_gpu) == 2.0


def test_many_ranks_have_their_memory_in_some_rows() -> None:
    meter = Meter({}, CPU, detail_every=10, ideal_seconds=None)
    shares: list[dict[str, Any]] = [{"seconds": {}, "memory": {"": float(rank)}} for rank in range(9)]
    with meter.step():
        pass
    assert meter.row(9, 8, shares)["memory/peak_gib"] == 8.0
    assert "memory/rank3_gib" not in meter.row(9, 8, shares)
    assert meter.row(10, 8, shares)["memory/rank3_gib"] == 3.0
    assert meter.row(9, 8, shares[:8])["memory/rank3_gib"] == 3.0


def ratios(ranks: Distributed, overrides: list[str], folder: Path) -> dict[str, list[float]]:
    """By ZeRO stage, what is logged of the third step, and what the weights before and after it say."""
    found = {}
    for stage in (0, 2, 3):
        settings = [*overrides, f"engine=zero{stage}", "checkpoint.every=1", "tracker.detail_every=3"]
        place = folder / str(stage)
        task, _ = train(ranks, settings, place, 2)
        before = dict(task.engines["model"].gather("param"))
        task, rows = train(ranks, settings, place, 3)
        after = dict(task.engines["model"].gather("param"))
        changes = sum((after[name] - weights).double().square().sum() for name, weights in before.items())
        weights = sum(weights.double().square().sum() for weights in after.values())
        assert [row["step"] for row in rows if "train/update_ratio" in row] == [3]
        found[str(stage)] = [rows[-1]["train/update_ratio"], float(cast(torch.Tensor, changes / weights)) ** 0.5]
    return found


@pytest.mark.slow
def test_the_update_ratio_is_that_of_the_weights_before_and_after(
    tiny_diffusion: list[str], tmp_path: Path, on_ranks: OnRanks
) -> None:
    settings = [*tiny_diffusion, "optimizer.weight_decay=0.5"]
    found = on_ranks(2, ratios, settings, tmp_path)
    for stage, (logged, true) in found.items():
        assert logged == pytest.approx(true, rel=1e-3), f"ZeRO {stage}"
        assert 1e-4 < logged < 1


def rows_of_parts(ranks: Distributed, overrides: list[str], folder: Path) -> list[dict[str, float]]:
    return train(ranks, [*overrides, "engine=zero2"], folder, 4)[1][1:]


def test_a_real_step_splits_into_its_parts(tiny_diffusion: list[str], tmp_path: Path, on_ranks: OnRanks) -> None:
    parts = ("data", "forward", "backward", "optimizer", "other")
    for row in on_ranks(2, rows_of_parts, tiny_diffusion, tmp_path):
        seconds = [row[f"speed/{part}_seconds"] for part in parts]
        assert all(value > 0 for value in seconds)
        assert sum(seconds) == pytest.approx(row["speed/step_seconds"], rel=1e-6)
        assert 0 < row["speed/communication_seconds"] < row["speed/step_seconds"]
        assert row["data/wait_fraction"] == row["data/wait_seconds"] / row["speed/step_seconds"]
        assert row["data/bytes_per_second"] >= row["data/retries"] == row["data/queue_depth"] == 0
