"""The schema and real runs say the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.conftest import PROJECT
from tests.training.conftest import OnRanks
from tests.training.runs import train
from training.distributed import Distributed
from training.metrics import METRICS, metric, repeats, table

ELSEWHERE = {
    *("data/bad/<reason>", "data/size/<width>x<height>", "checkpoint/uploaded", "checkpoint/upload_seconds"),
    *("train/skipped_updates", "train/roll_backs", "train/batches_left_out"),
    *("run/goodput", "run/restarts", "run/lost_steps"),
}
"""Logged by runs of other tests, or above the loop."""


def rows_of_all_tasks(ranks: Distributed, tasks: dict[str, list[str]], folder: Path) -> list[dict[str, Any]]:
    """The rows of three steps of each."""
    settings = ["checkpoint.every=1", "tracker.detail_every=2", "tracker.gpu=h100"]
    return [
        row for name, overrides in tasks.items() for row in train(ranks, [*overrides, *settings], folder / name, 3)[1]
    ]


def test_every_metric_of_a_run_is_in_the_schema_and_the_other_way_round(
    tiny_diffusion: list[str],
    tiny_autoencoder: list[str],
    tiny_vq: list[str],
    tiny_classifier: list[str],
    squares: Path,
    tmp_path: Path,
    on_ranks: OnRanks,
) -> None:
    sources = f"data.train={{a: {{url: {squares}/train, weight: 1}}, b: {{url: {squares}/heldout, weight: 1}}}}"
    tasks = {
        "diffusion": [*tiny_diffusion, sources],
        "kl": tiny_autoencoder,
        "vq": [*tiny_vq, "task.adversary_start=0", "task.revive_codes_every=2"],
        "classifier": tiny_classifier,
    }
    rows = on_ranks(2, rows_of_all_tasks, tasks, tmp_path)
    names = {name for row in rows for name in row}
    assert not [name for name in names if metric(name) is None]
    wanted = {m.name: m for m in METRICS if m.where != "GPUs" and not m.name.startswith("eval/")}
    missing = [name for name, m in wanted.items() if name not in ELSEWHERE and not any(m.covers(n) for n in names)]
    assert not missing


def test_every_name_has_one_entry_alone() -> None:
    for name in ("train/loss", "train/loss_decile_9", "train/loss_source_art", "data/epoch/art", "memory/rank12_gib"):
        assert len([m for m in METRICS if m.covers(name)]) == 1, name
    assert len({m.name for m in METRICS}) == len(METRICS)
    assert metric("train/los") is None and metric("train/loss_decile_x") is None


def test_what_is_the_machines_does_not_repeat() -> None:
    assert repeats("train/loss") and repeats("data/bad/truncated") and repeats("eval/psnr")
    assert (
        not repeats("speed/step_seconds")
        and not repeats("eval/seconds")
        and not repeats("memory/rank0_gib")
        and not repeats("never/heard")
    )


def test_the_page_is_the_table() -> None:
    page = (PROJECT / "docs" / "metrics.md").read_text()
    assert table() in page, "run: python -m training.metrics"
    assert not re.search(r"\|\s*\|\s*\|\s*\|", table())
