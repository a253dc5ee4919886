"""A run folder is read as it is: torn, resumed, young, or full."""

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.run_record import read_run


def write_lines(folder: Path, lines: list[dict[str, Any]], tail: str = "") -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)


def test_series_hold_what_was_logged(tmp_path: Path) -> None:
    lines = [{"step": s, "images_seen": 8 * s, "time": 100.0 + s, "train/loss": 1 / s} for s in (1, 2, 3)]
    write_lines(tmp_path, lines, tail='{"step": 4, "train/lo')
    run = read_run(tmp_path)
    assert (run.steps, run.images_seen, run.training_seconds, run.pauses) == (3, 24, 2.0, 0)
    loss = run.metrics["train/loss"]
    assert (loss.steps.tolist(), loss.values.tolist()) == ([1, 2, 3], [1, 1 / 2, 1 / 3])
    assert set(run.metrics) == {"train/loss"}


def test_later_lines_of_a_step_hold(tmp_path: Path) -> None:
    write_lines(tmp_path, [{"step": 1, "a/x": 1}, {"step": 2, "a/x": 2}, {"step": 2, "a/x": 5, "a/y": 7}])
    metrics = read_run(tmp_path).metrics
    assert metrics["a/x"].values.tolist() == [1, 5]
    assert metrics["a/y"].steps.tolist() == [2]


def test_a_long_stop_is_no_training_time(tmp_path: Path) -> None:
    times = [0, 1, 2, 3, 10_000, 10_001]
    write_lines(tmp_path, [{"step": i, "time": float(t)} for i, t in enumerate(times)])
    run = read_run(tmp_path)
    assert (run.training_seconds, run.pauses) == (4.0, 1)


def test_waiting_is_a_share_of_the_step(tmp_path: Path) -> None:
    write_lines(tmp_path, [{"step": 1, "data/wait_seconds": 0.5, "speed/step_seconds": 2.0}])
    assert read_run(tmp_path).metrics["data/wait_fraction"].values.tolist() == [0.25]


def test_counters_that_begin_anew_are_added_up(tmp_path: Path) -> None:
    write_lines(tmp_path, [{"step": i, "data/bad/truncated": n} for i, n in enumerate([1, 1, 4, 2, 3])])
    assert read_run(tmp_path).metrics["data/bad/truncated"].counted == 7


def test_ranks_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_lines(tmp_path, [{"step": 1, **{f"memory/rank{i}_gib": 1.0 for i in (10, 2, 0)}}])
    assert list(read_run(tmp_path).matching("memory/")) == ["rank0_gib", "rank2_gib", "rank10_gib"]


def test_credentials_of_the_configuration_are_masked(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "data: {url: 'https://x/y?X-Amz-Signature=abc', api_key: k, image_size: 64}\n"
    )
    assert read_run(tmp_path).config == {
        "data": {"url": "https://x/y?X-Amz-Signature=***", "api_key": "***", "image_size": 64}
    }


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is it a run folder"):
        read_run(tmp_path)
    (tmp_path / "config.yaml").write_text("run: {name: young}\n")
    assert read_run(tmp_path).name == "young"
