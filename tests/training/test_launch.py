"""Of several ranks that failed, the one that caused it is told of, alone."""

from __future__ import annotations

import json
import signal
import tempfile
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from data.errors import DataError
from training import launch


def failed(rank: int, folder: Path, exitcode: int, message: str = "", seconds: float = 0.0) -> ProcessFailure:
    """A rank that ended with `exitcode`, having left `message` that many seconds from now, or nothing."""
    path = folder / f"rank{rank}.json"
    if message:
        then = time.time() + seconds
        record = {"message": message, "timestamp": int(then), "time": then, "status": exitcode}
        path.write_text(json.dumps(record))
    return ProcessFailure(rank, 1000 + rank, exitcode, str(path))


def test_wrong_data_before_the_peers_it_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peer = failed(0, tmp_path, 1, "rank 0: Traceback: connection closed by peer", seconds=-0.1)
    assert launch.explain([peer, failed(1, tmp_path, 2, "error: data.train=x: no")]).status == 2
    assert capsys.readouterr().err == "error: data.train=x: no\n"


def test_a_killed_rank_before_the_peers_it_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peer = failed(0, tmp_path, 1, "rank 0: Traceback: connection closed by peer", seconds=-0.3)
    assert launch.explain([peer, failed(1, tmp_path, -signal.SIGKILL)]).status == 128 + signal.SIGKILL
    assert capsys.readouterr().err.startswith("error: rank 1 was ended by SIGKILL (out of memory?); the same command")


@pytest.mark.parametrize(("ended_by", "seconds"), [(signal.SIGTERM, -0.3), (signal.SIGKILL, -30.0)])
def test_a_bug_before_the_peers_that_were_ended_for_it(
    ended_by: int, seconds: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bug = failed(1, tmp_path, 1, "rank 1: Traceback: KeyError", seconds)
    assert launch.explain([failed(0, tmp_path, -ended_by), bug]).status == 1
    assert capsys.readouterr().err == "rank 1: Traceback: KeyError\n"


def test_the_first_bug_of_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.explain([failed(0, tmp_path, 1, "later", 0.2), failed(1, tmp_path, 1, "sooner", 0.1)]).status == 1
    assert capsys.readouterr().err == "sooner\n"


def test_a_silent_end_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.explain([failed(3, tmp_path, 7)]).status == 7
    assert "error: rank 3 ended with status 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [(DataError("url is wrong"), 2, "error: url is wrong"), (KeyError("x"), 1, "rank 1: Trace")],
)
def test_a_rank_leaves_its_error_and_prints_nothing(
    error: Exception,
    status: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv(launch.RANK_MARK, "1")
    monkeypatch.setenv(launch.ERROR_FILE, str(tmp_path / "rank1.json"))
    statuses = {DataError: 2}
    with pytest.raises(SystemExit) as ended, launch.errors_for_launcher(lambda e: statuses.get(type(e))):
        raise error
    assert ended.value.code == status
    assert capsys.readouterr() == ("", "")
    assert launch.explain([failed(1, tmp_path, status)]).status == status
    assert capsys.readouterr().err.startswith(told)


def test_what_a_killed_launcher_left_is_taken_away_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f"{launch.TEMPORARY}left"
    (left / "pymp-abc").mkdir(parents=True)
    (left / "lock").touch()
    with launch._temporary_folder() as one, launch._temporary_folder() as two:
        assert not left.exists()
        assert {str(path) for path in tmp_path.iterdir()} == {one, two}, "that of a living one stays"
    assert list(tmp_path.iterdir()) == []
