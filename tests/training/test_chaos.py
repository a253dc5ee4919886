"""Six faults of different kinds; fifty are `python -m tests.benchmarks.chaos`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.transfer import Transfers
from tests.chaos.disturbed import NOT_MADE, RESTART, RIDDEN_OUT
from tests.chaos.faults import FAULTS
from tests.chaos.supervisor import MARK
from tests.chaos.telling import Teller
from tests.chaos.trial import table, trial
from tests.chaos.verdict import differences, leftovers, problems_of_uploads
from tests.store import needs_store
from training.checkpoint_files import FileEntry, Manifest, folder_name
from training.checkpoint_store import CheckpointStore
from training.starts import read_starts

CHOSEN = (
    "kill -9 of a rank",
    "bit turned in a manifest, down",
    "store truncates answers",
    "disk full",
    "bit turned in a checkpoint, up",
    "kill -9 of the launcher",
)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """One with a short name: data workers' sockets lie below the folder for temporary files."""
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.slow
@needs_store
def test_a_run_under_faults_ends_as_a_calm_one(short_folder: Path) -> None:
    faults = [next(fault for fault in FAULTS if fault.name == name) for name in CHOSEN]
    outcome = trial(short_folder, faults, seed=1, minutes=float("inf"), teller=Teller())
    assert outcome.problems == [], "\n".join(table(outcome.records))
    made = [record for record in outcome.records if record.outcome != NOT_MADE]
    assert outcome.survived == len(made) >= len(CHOSEN) - 1, outcome.records  # no small disk where nobody is root
    restarts = [record for record in made if record.outcome == RESTART]
    assert 3 <= len(restarts) < len(outcome.statuses)
    assert "bit turned in a checkpoint, up" in {record.fault for record in made if record.outcome == RIDDEN_OUT}
    assert outcome.goodput.lost_steps == sum(record.lost_steps for record in outcome.records) > 0
    assert 0 < outcome.goodput.fraction < 1 and len(read_starts(short_folder / "disturbed")) <= len(outcome.statuses)


def write_rows(run: Path, losses: dict[int, float]) -> None:
    run.mkdir(exist_ok=True)
    lines = (json.dumps({"step": step, "train/loss": loss}) + "\n" for step, loss in losses.items())
    (run / "metrics.jsonl").write_text("".join(lines))


def test_the_verdict_sees_other_losses_and_steps(tmp_path: Path) -> None:
    calm, other = tmp_path / "calm", tmp_path / "other"
    write_rows(calm, {0: 1.0, 1: 0.5, 2: 0.25})
    write_rows(other, {0: 1.0, 1: 0.5, 2: 0.25})
    [alone] = differences(other, calm, 2)
    assert "no whole checkpoint" in alone
    write_rows(other, {0: 1.0, 1: 0.5, 2: 0.25 + 2**-54})
    assert "the losses of 1 steps differ, from step 2 on" in differences(other, calm, 2)
    write_rows(other, {0: 1.0, 2: 0.25})
    assert any("each of the steps 0 to 2 once" in found for found in differences(other, calm, 2))


def test_the_verdict_sees_what_is_wrong_in_the_store(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), Transfers())
    assert "is none, not of step 8" in problems_of_uploads(store, 8)[0]
    for step in (4, 8):
        folder = tmp_path / "checkpoints" / folder_name(step)
        folder.mkdir(parents=True)
        (folder / "rank").write_bytes(b"123")
        if step == 8:
            entry = FileEntry(3, hashlib.sha256(b"123").hexdigest())
            (folder / "manifest.json").write_text(Manifest(8, 64, 1, {}, {"rank": entry}).to_json())
    assert problems_of_uploads(store, 8) == [f"{store.place(folder_name(4))}: a torn checkpoint"]
    (folder / "rank").write_bytes(b"124")
    assert "sha256" in problems_of_uploads(store, 8)[0]
    assert f"is {folder_name(8)}, not of step 12" in problems_of_uploads(store, 12)[0]


def test_the_verdict_sees_what_was_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.chaos.verdict.GONE_SECONDS", 0.2)
    run, temporary = tmp_path / "run", tmp_path / "temporary"
    (run / "checkpoints" / "step-00000004").mkdir(parents=True)
    (run / "checkpoints" / "step-00000008").mkdir()
    (run / "checkpoints" / "step-00000008" / "manifest.json").touch()
    temporary.mkdir()
    assert [path.partition(":")[0] for path in leftovers(run, temporary, 2e10)] == [
        str(run / "checkpoints" / "step-00000004")
    ]
    (run / "checkpoints" / "step-00000004").rmdir()
    (run / "config.yaml.partial").touch()
    (temporary / "pymp-abc").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, MARK: str(run)},
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()  # before it has begun, its environment is this process's
        found = leftovers(run, temporary, 2e10)
    finally:
        process.kill()
        process.communicate()
    assert [found[0].startswith(f"process {process.pid}: "), *found[1:]] == [
        True,
        str(run / "config.yaml.partial"),
        str(temporary / "pymp-abc"),
    ]
