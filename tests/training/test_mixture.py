"""Training on several sources: their losses and counts, on any number of ranks, and after a restart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import OnRanks
from tests.training.runs import train
from training.distributed import Distributed


def rows_of_a_run(ranks: Distributed, overrides: list[str], folder: Path, stops: list[int]) -> list[dict[str, Any]]:
    """metrics.jsonl after training to each of the steps in turn."""
    for stop in stops:
        _, rows = train(ranks, [*overrides, "checkpoint.every=1000"], folder, stop)
    return rows[1:]


def of_two_sources(overrides: list[str], squares: Path) -> list[str]:
    """The same with two sources, one of which brings a quarter of the samples, and no data.url."""
    kept = [override for override in overrides if not override.startswith("data.url=")]
    sources = f"{{most:{{url:'{squares}/train',weight:3}},few:{{url:'{squares}/heldout',weight:1}}}}"
    return [*kept, f"data.train={sources}", f"data.held_out={squares}/heldout", "task.snr_weight=null"]


@pytest.mark.slow
def test_losses_and_counts_by_source(
    tiny_diffusion: list[str], squares: Path, tmp_path: Path, on_ranks: OnRanks
) -> None:
    overrides = of_two_sources(tiny_diffusion, squares)
    one = on_ranks(1, rows_of_a_run, overrides, tmp_path / "one", [6])
    two = on_ranks(2, rows_of_a_run, overrides, tmp_path / "two", [3, 6])
    assert len(one) == len(two) == 6
    before = {"most": 0, "few": 0}
    for row, other in zip(one, two, strict=True):
        counts = {name: row[f"data/samples/{name}"] - before[name] for name in before}
        assert sum(counts.values()) == 8
        losses = {name: row.get(f"train/loss_source_{name}") for name in before}
        assert {name for name, loss in losses.items() if loss is not None} == {n for n, c in counts.items() if c}
        weighted = sum(losses[name] * counts[name] for name in before if counts[name])
        assert math.isclose(weighted / 8, row["train/loss"], rel_tol=1e-5)
        for key, value in row.items():
            if key.startswith("train/loss"):
                assert math.isclose(other[key], value, rel_tol=1e-4), key
            if key.startswith(("data/samples", "data/epoch")):
                assert other[key] == value, key
        before = {name: row[f"data/samples/{name}"] for name in before}
    assert one[-1]["data/epoch/few"] == before["few"] / 8
    assert before["most"] > before["few"] > 0


@pytest.mark.slow
def test_losses_by_source_of_a_first_stage(
    tiny_autoencoder: list[str], squares: Path, tmp_path: Path, on_ranks: OnRanks
) -> None:
    overrides = [o for o in of_two_sources(tiny_autoencoder, squares) if not o.startswith("task.snr_weight")]
    rows = on_ranks(1, rows_of_a_run, overrides, tmp_path, [2])
    counts = {name: rows[0][f"data/samples/{name}"] for name in ("most", "few")}
    weighted = sum(rows[0][f"train/loss_source_{name}"] * count for name, count in counts.items() if count)
    assert math.isclose(weighted / 8, rows[0]["train/loss"], rel_tol=1e-5)
