"""Results come to W&B beside the run that was measured. With the real client, offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.evaluation.test_evaluate import SMALL, command
from tests.evaluation.test_sweep import SWEEP
from training.wandb_file import messages


@pytest.fixture
def tracked_run(writable_run: Path) -> Path:
    """The run, as one that logs to W&B offline."""
    config = OmegaConf.load(writable_run / "config.yaml")
    (writable_run / "config.yaml").unlink()
    OmegaConf.save(
        OmegaConf.merge(config, {"tracker": {"project": "ldm", "mode": "offline"}}), writable_run / "config.yaml"
    )
    return writable_run


def records(folder: Path) -> tuple[list[Any], list[dict[str, Any]]]:
    """The W&B runs in a folder's offline files, and all rows that were logged."""
    from wandb.proto import wandb_internal_pb2

    runs, rows = [], []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for content, _ in messages(path.read_bytes(), at_start=True):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(content)
            if record.WhichOneof("record_type") == "run":
                runs.append(record.run)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    return runs, rows


def test_a_result_is_a_point_and_a_sweep_a_table(
    tracked_run: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(monkeypatch, f"run={tracked_run}", *SMALL, f"data.shards={colours}")
    [run], [row] = records(tracked_run)
    assert (run.project, run.run_group, run.job_type, run.display_name) == ("ldm", "tiny", "evaluate", "tiny: openmoji")
    result = json.loads((tracked_run / "evaluation" / "openmoji-step00000070.json").read_text())
    assert row["training_step"] == 70
    assert row["eval/Fréchet distance (EfficientNet-Lite0)"] == result["measured"]["frechet"]

    command(monkeypatch, f"run={tracked_run}", *SMALL, f"data.shards={colours}", *SWEEP)
    runs, rows = records(tracked_run)
    assert {run.display_name for run in runs} == {"tiny: openmoji", "tiny: openmoji sweep"}
    assert len({run.run_id for run in runs}) == 2
    [logged] = [row for row in rows if "sweep/settings._type" in row]
    assert (logged["training_step"], logged["sweep/settings._type"], logged["sweep/settings.nrows"]) == (
        70,
        "table-file",
        4,
    )
    assert any(key.startswith("sweep/Inception-style score") for key in logged), "the plot's"
    [table] = tracked_run.glob("wandb/offline-run-*/files/media/table/sweep/settings_*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"][:2] == ["guidance scale", "steps"] and content["columns"][-1] == "pictures"
    assert {tuple(row[:2]) for row in content["data"]} == {(1.0, 1), (2.5, 1), (1.0, 2), (2.5, 2)}
    sweep = json.loads((tracked_run / "evaluation" / "openmoji-step00000070-sweep" / "sweep.json").read_text())
    assert [row[2] for row in content["data"]] == [point[content["columns"][2]] for point in sweep["points"]]
