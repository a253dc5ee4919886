"""The record of starts: one line each, whole whatever ends a process or fills the disk, and without secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training import starts
from training.attempt import complete_record
from training.failures import leave, path_of
from training.starts import FAILED, FINISHED, KILLED, STARTS, read_starts


def begin(folder: Path, step: int = 0) -> int:
    return starts.begin(folder, None, ["here"], 2, "settings", step).number


def write_rows(folder: Path, *steps: int) -> None:
    rows = (json.dumps({"step": step, "time": 2e9 + step, "train/loss": 1.0}) + "\n" for step in steps)
    (folder / "metrics.jsonl").write_text("".join(rows))


def test_one_line_a_start(tmp_path: Path) -> None:
    for number in (1, 2):
        assert begin(tmp_path, number) == number
        starts.note_training(tmp_path, number, number)
        starts.note_end(tmp_path, number, FINISHED, None)
    first, second = (json.loads(line) for line in (tmp_path / STARTS).read_text().splitlines())
    assert (first["number"], first["step"], first["end"]) == (1, 1, FINISHED)
    assert second["time"] <= second["trained"] <= second["ended"]


def test_who_is_killed_tells_no_end_and_the_next_start_completes_it(tmp_path: Path) -> None:
    begin(tmp_path, step=4)
    starts.note_training(tmp_path, 1, 4)
    assert read_starts(tmp_path)[0].end is None
    write_rows(tmp_path, 4, 5, 6)
    [start] = complete_record(tmp_path)
    assert (start.end, start.error, start.last_step, start.ended) == (KILLED, None, 6, 2e9 + 6)


def test_steps_of_the_start_before_are_lost_once(tmp_path: Path) -> None:
    starts.begin(tmp_path, None, ["here"], 2, "settings", 0)
    starts.note_training(tmp_path, 1, 0)
    trained = read_starts(tmp_path)[0].trained
    assert trained is not None
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 6, "time": trained + 1}) + "\n")
    complete_record(tmp_path)
    for trains in (False, True):  # both are killed before a first step; the rows beyond step 4 may still be there
        number = begin(tmp_path, step=4)
        if trains:
            starts.note_training(tmp_path, number, 4)
            _set_trained(tmp_path, number, trained + 2)
        complete_record(tmp_path)
    assert [start.last_step for start in read_starts(tmp_path)] == [6, 4, 4]


def _set_trained(folder: Path, number: int, when: float) -> None:
    lines = [json.loads(line) for line in (folder / STARTS).read_text().splitlines()]
    lines[number - 1]["trained"] = when
    (folder / STARTS).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_its_ranks_left_says_how_it_ended(tmp_path: Path) -> None:
    begin(tmp_path)
    leave(tmp_path, 1, 1, "ValueError: no such thing\n\nTraceback ...")
    [start] = complete_record(tmp_path)
    assert (start.end, start.error) == (FAILED, "ValueError: no such thing")
    assert start.ended == path_of(tmp_path, 1, 1).stat().st_mtime, "not when the last step was made"
    begin(tmp_path)
    leave(tmp_path, 2, 0, "RuntimeError: [gloo] Connection closed by peer [10.0.0.2]:3333")
    assert complete_record(tmp_path)[1].end == KILLED
    assert complete_record(tmp_path)[1].error == "rank 1 ended without a word"
    begin(tmp_path)
    leave(tmp_path, 3, 0, "RuntimeError: [gloo] Connection closed by peer [10.0.0.2]:3333")
    leave(tmp_path, 3, 1, "RuntimeError: [gloo] Connection closed by peer [10.0.0.1]:3333")
    assert complete_record(tmp_path)[2].end == FAILED, "everybody lives: it's the network"


def test_lines_that_are_none_are_left_out(tmp_path: Path) -> None:
    begin(tmp_path)
    with (tmp_path / STARTS).open("a") as file:
        file.write('[]\n{"number": 7}\n\x00\x00\n{"number": 2, "time": 1')
    assert [start.number for start in read_starts(tmp_path)] == [1]
    assert begin(tmp_path) == 2
    assert [start.number for start in read_starts(tmp_path)] == [1, 2]


def test_errors_are_one_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "opensesame")
    traceback = "rank 1: Traceback (most recent call last):\n  File x\nKeyError: 'opensesame s3://me:pass@host/x'\n"
    assert starts.one_line(traceback) == "KeyError: '*** s3://***@host/x'"
    assert starts.one_line("error: first\nsecond") == "first"


def test_a_full_disk_leaves_the_record_as_it_was(small_disk: Path) -> None:
    begin(small_disk)
    before = (small_disk / STARTS).read_text()
    with (small_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
        while True:
            filler.write(bytes(4096))
    with pytest.raises(OSError):
        starts.note_end(small_disk, 1, FINISHED, None)
    assert (small_disk / STARTS).read_text() == before
    (small_disk / "filler").unlink()
    starts.note_end(small_disk, 1, FINISHED, None)
    assert read_starts(small_disk)[0].end == FINISHED
