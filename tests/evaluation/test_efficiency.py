"""What models cost beside how good they are: by hand, and by the command."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from evaluation.efficiency import rank_days, run
from evaluation.errors import EvaluationError
from evaluation.run_metrics import Series
from training.compose import composed
from training.starts import STARTS, Start


def start(number: int, time: float, ranks: int) -> Start:
    return Start(number, time, None, None, ["a"], ranks, "", 0)


def test_days_of_ranks_are_those_of_the_starts_that_made_the_steps() -> None:
    steps = np.arange(1, 5)
    metrics = {
        "speed/step_seconds": Series(steps, np.array([10.0, 20.0, 30.0, 40.0])),
        "time": Series(np.arange(5), np.array([100.0, 110.0, 130.0, 1030.0, 1070.0])),
    }
    days = rank_days([start(1, 90.0, 2), start(2, 1000.0, 3)], metrics)
    assert days == pytest.approx((2 * (10 + 20) + 3 * (30 + 40)) / 86400)
    assert rank_days([], metrics) is None


def test_the_command_times_and_tells(writable_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = [{"step": step, "images_seen": 8 * step, "time": 10.0 + step} for step in range(4)]
    rows = [row | {"speed/step_seconds": 0.5, "speed/images_per_second": 16.0 + row["step"]} for row in rows]
    (writable_run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (writable_run / STARTS).write_text(json.dumps(vars(start(1, 5.0, 4))) + "\n")
    other = tmp_path / "bare"
    shutil.copytree(writable_run, other)
    (other / "metrics.jsonl").unlink()
    settings = ["sampler_steps=[1,3]", "images=4", "batch_size=2", f"output={tmp_path / 'out'}"]
    run(composed("efficiency", [f"runs=[{writable_run},{other}]", *settings]))
    told = capsys.readouterr().out
    assert "bare" in told and "CPU" in told
    with (tmp_path / "out" / "efficiency.csv").open() as file:
        first, second = csv.DictReader(file)
    assert float(first["training (GPU-days)"]) == pytest.approx(4 * 0.5 * 4 / 86400)
    assert (first["training (images/s)"], second["training (images/s)"]) == ("17.5", "")
    assert float(first["images seen (M)"]) == pytest.approx(24e-6)
    assert first["trained parameters (M)"] == second["trained parameters (M)"] != "0.0"
    assert all(float(first[f"sampling, {steps} steps (images/s)"]) > 0 for steps in (1, 3))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampler_steps=[]", "sampler_steps"),
        ("sampler_steps=[1,1]", "each once"),
        ("images=0", "images=0"),
        ("batch_size=1.5", "batch_size=1.5"),
    ],
)
def test_values_that_cannot_be(override: str, message: str, writable_run: Path) -> None:
    with pytest.raises(EvaluationError, match=message.replace("[", r"\[")):
        run(composed("efficiency", [f"runs={writable_run}", override]))


def test_runs_must_be_given() -> None:
    with pytest.raises(EvaluationError, match="runs=\\?\\?\\?"):
        run(OmegaConf.create({"runs": "???"}))
