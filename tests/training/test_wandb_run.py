"""W&B has each step of a run once, whatever ended it, online and offline. With the real client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb

from evaluation.gallery import write_step_samples
from evaluation.wandb_session import ID_FILE
from tests.training.wandb_service import StoredRun, WandbService
from training.tracker import Tracker
from training.wandb_file import last_step, messages

KEY = "k" * 40
SECRET = "very-secret-0815"


@pytest.fixture(scope="module")
def one_service() -> Iterator[WandbService]:
    """One for all tests: a process's client keeps to the address that it first knew."""
    wandb.teardown()
    with WandbService() as service, pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_BASE_URL", service.url)
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        yield service
        wandb.teardown()


@pytest.fixture
def service(one_service: WandbService) -> Iterator[WandbService]:
    """Without any runs."""
    one_service.forget()
    yield one_service
    wandb.finish()  # should the test have failed


def start(folder: Path, mode: str, resume_step: int = 0, rewind: bool = False, x_axis: str = "step") -> Tracker:
    folder.mkdir(exist_ok=True)
    config = {"steps": 9, "data": {"url": "s3://bucket/shards"}}
    return Tracker(folder, True, config, "ldm", mode, x_axis, rewind, resume_step)


def log(tracker: Tracker, first: int, last: int, loss: float = 0.0) -> None:
    for step in range(first, last + 1):
        tracker.log(step, {"train/loss": step + loss, "images_seen": 8 * step})


def crash(tracker: Tracker) -> None:
    """Ends the client, not the log, beyond the last checkpoint."""
    assert tracker._wandb is not None
    tracker._wandb._run.finish(exit_code=1)
    wandb.teardown()  # ends the client's process, as the end of ours does
    time.sleep(1.0)  # its folders are named by the second


def only(service: WandbService, folder: Path) -> StoredRun:
    assert list(service.runs) == [(folder / ID_FILE).read_text()], "one run stays one run"
    return service.runs[(folder / ID_FILE).read_text()]


def steps_and_losses(run: StoredRun) -> list[tuple[int, float]]:
    return [(row["_step"], row["train/loss"]) for row in run.history]


def straight(last: int) -> list[tuple[int, float]]:
    return [(step, float(step)) for step in range(last + 1)]


def test_online_steps_beyond_the_checkpoint_are_not_repeated(service: WandbService, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tracker = start(folder, "auto")
    log(tracker, 0, 7)
    crash(tracker)
    tracker = start(folder, "auto", resume_step=4)
    log(tracker, 5, 9)
    tracker.close(failed=False)
    run = only(service, folder)
    assert steps_and_losses(run) == straight(9)
    assert [row["images_seen"] for row in run.history] == [8 * step for step in range(10)]
    assert run.exit_code == 0
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == list(range(10))


def test_online_steps_that_were_never_sent_come_from_the_log(service: WandbService, tmp_path: Path) -> None:
    """With the pictures that were drawn then."""
    folder = tmp_path / "run"
    tracker = start(folder, "online")
    log(tracker, 0, 6)
    crash(tracker)
    run = only(service, folder)
    run.lines = {number: line for number, line in run.lines.items() if number < 3}  # as if the others had been lost
    write_step_samples(folder, 5, torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ["a cat", "a dog"])
    tracker = start(folder, "online", resume_step=6)
    log(tracker, 7, 8)
    tracker.close(failed=False)
    assert steps_and_losses(run) == straight(8)
    assert [row["_step"] for row in run.history if "samples" in row] == [5]
    [pictures] = [row["samples"] for row in run.history if "samples" in row]
    assert pictures["caption"] == "a cat | a dog"
    assert any("samples" in path for path in service.uploads)


def test_a_run_that_went_other_ways_is_rewound_where_asked_for(service: WandbService, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tracker = start(folder, "online")
    log(tracker, 0, 7)
    crash(tracker)
    tracker = start(folder, "online", resume_step=4, rewind=True)
    log(tracker, 5, 6, loss=0.5)
    tracker.close(failed=False)
    assert steps_and_losses(only(service, folder)) == [*straight(4), (5, 5.5), (6, 6.5)]


def test_a_service_that_cannot_rewind_keeps_what_it_has(
    service: WandbService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service.can_rewind = False
    folder = tmp_path / "run"
    tracker = start(folder, "online")
    log(tracker, 0, 7)
    crash(tracker)
    tracker = start(folder, "online", resume_step=4, rewind=True)
    log(tracker, 5, 8, loss=0.5)
    tracker.close(failed=False)
    assert steps_and_losses(only(service, folder)) == [*straight(7), (8, 8.5)]
    assert "W&B keeps steps 5 to 7 as they were" in caplog.text


def test_offline_files_synced_later_are_one_curve(service: WandbService, tmp_path: Path) -> None:
    """Of three starts, of which one was killed before its last rows were written, and one went beyond a checkpoint."""
    folder = tmp_path / "run"
    tracker = start(folder, "offline", x_axis="images_seen")
    log(tracker, 0, 3)
    crash(tracker)
    tear(folder)
    tracker = start(folder, "offline", resume_step=3, x_axis="images_seen")
    log(tracker, 4, 7)
    crash(tracker)
    tracker = start(folder, "offline", resume_step=5, x_axis="images_seen")
    log(tracker, 6, 9)
    tracker.alert("loss spike", "it doubled", is_error=False)
    tracker.close(failed=False)
    assert not service.runs
    starts = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(starts) == 3
    command = [sys.executable, "-m", "wandb", "sync", *map(str, starts)]
    synced = subprocess.run(
        command, cwd=folder, env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert synced.returncode == 0, synced.stderr
    run = only(service, folder)
    assert steps_and_losses(run) == straight(9)


def tear(folder: Path) -> None:
    """Cuts the newest offline file within its last row, as a client that is killed leaves it."""
    [path] = (folder / "wandb").glob("offline-run-*/*.wandb")
    data = path.read_bytes()
    rows = [end for content, end in messages(data, at_start=True) if b"_step" in content and b"_runtime" in content]
    path.write_bytes(data[: rows[2] + 20])  # within the last row
    assert last_step(path.parents[1], (folder / ID_FILE).read_text()) < 3


def test_alerts_reach_the_service(service: WandbService, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tracker = start(folder, "online")
    tracker.alert("non-finite step", "loss is nan in step 3", is_error=True)
    tracker.close(failed=True)
    run = only(service, folder)
    assert [(alert["title"], alert["text"], alert["severity"]) for alert in run.alerts] == [
        ("non-finite step", "loss is nan in step 3", "ERROR")
    ]
    assert run.exit_code == 1


def test_no_secret_leaves_the_machine_or_lies_in_a_file(service: WandbService, tmp_path: Path) -> None:
    for mode in ("online", "offline"):
        tracker = start(tmp_path / mode, mode)
        log(tracker, 0, 2)
        tracker.close(failed=False)
    assert service.bodies
    for secret in (KEY, SECRET):
        assert not [body for body in service.bodies if secret.encode() in body]
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(files) > 4
        assert not [path for path in files if secret.encode() in path.read_bytes()]


def blocks(contents: list[bytes]) -> bytes:
    """A .wandb file of these messages."""
    data = b":W&B\xe1\xbe\x00"
    for content in contents:
        first, rest = True, content
        while first or rest:
            room = 32768 - len(data) % 32768
            if room < 7:
                data += bytes(room)
                room = 32768
            part, rest = rest[: room - 7], rest[room - 7 :]
            kind = (1 if not rest else 2) if first else (4 if not rest else 3)
            checksum = zlib.crc32(bytes([kind]) + part).to_bytes(4, "little")
            data += checksum + len(part).to_bytes(2, "little") + bytes([kind]) + part
            first = False
    return data


@pytest.mark.parametrize("sizes", [[1, 2, 3], [40_000, 5, 100_000, 7], [32768 - 7 - 7 - 3, 9, 9]])
def test_messages_are_read_from_the_start_and_from_any_block(sizes: list[int]) -> None:
    contents: list[Any] = [bytes([number]) * size for number, size in enumerate(sizes, 1)]
    data = blocks(contents)
    assert [content for content, _ in messages(data, at_start=True)] == contents
    ends = [end for _, end in messages(data, at_start=True)]
    assert ends[-1] == len(data)
    for block in range(1, -(-len(data) // 32768)):
        found = list(messages(data[block * 32768 :], at_start=False))
        assert [content for content, _ in found] == contents[len(contents) - len(found) :]
        assert [block * 32768 + end for _, end in found] == ends[len(ends) - len(found) :]
    assert [end for _, end in messages(data[:-1], at_start=True)] == ends[:-1]
