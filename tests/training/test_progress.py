"""What a person sees of training: one live line on a terminal, plain lines in a file."""

from __future__ import annotations

import io
import os

import pytest

from training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


ROW = {
    "train/loss": 0.5,
    "speed/images_per_second": 8.0,
    "speed/step_seconds": 2.0,
    "data/wait_seconds": 0.5,
    "memory/peak_gib": 1.25,
}


def train(clock: list[float], shown: bool = True, **more: float) -> None:
    progress = Progress("train", 1000, 0, shown)
    for _ in range(60):
        clock[0] += 2.0
        progress.advance(ROW | more)
    progress.close("done")


def test_a_terminal_has_one_line_that_fits(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    for columns in (30, 60, 90, 200):
        monkeypatch.setattr("sys.stderr", terminal := Terminal())
        monkeypatch.setattr("shutil.get_terminal_size", lambda c=columns: os.terminal_size((c, 24)))
        train(clock, **{"speed/mfu": 0.31, "data/bad/truncated": 3.0})
        live, end = terminal.getvalue().rsplit("\n", 2)[:2]
        assert "\n" not in live, "one line"
        states = [state.removesuffix("\x1b[K") for state in live.split("\r")[1:]]
        assert len(states) == 60
        assert all(len(state) < columns for state in states)
        assert states[-1].startswith("train 60/1,000   6%")
        assert end == "train: done at step 60 after 2:00"
    assert states[-1] == (
        "train 60/1,000   6% | loss 0.5000 | 31:20 left | 8.0 images/s | data wait 25.0% | MFU 31.0% | 1.2 GiB | "
        "bad samples 3 | 2:00 so far"
    )


def test_a_file_has_plain_lines_now_and_then(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    monkeypatch.setattr("sys.stderr", file := io.StringIO())
    train(clock)
    lines = file.getvalue().splitlines()
    assert "\r" not in file.getvalue() and "\x1b" not in file.getvalue()
    assert (
        lines[0]
        == "train 1/1,000   0% | loss 0.5000 | 33:18 left | 8.0 images/s | data wait 25.0% | 1.2 GiB | 0:02 so far"
    )
    assert lines[-1] == "train: done at step 60 after 2:00"
    assert 8 <= len(lines) <= 10, "every 16 of 120 seconds, the first and the end"


def test_other_ranks_show_nothing(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    train(clock, shown=False)
    assert not terminal.getvalue()


def test_rate_and_wait_are_those_of_the_last_steps(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    monkeypatch.setattr("sys.stderr", file := io.StringIO())
    progress = Progress("train", 150, 0, True)
    for step in range(150):
        clock[0] += 2.0
        progress.advance(ROW if step < 75 else ROW | {"speed/images_per_second": 16.0, "data/wait_seconds": 0.0})
    assert "16.0 images/s | data wait 0.0%" in file.getvalue().splitlines()[-1]
