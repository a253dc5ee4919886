"""A start is recorded however it ends, and isn't made in a crash loop."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from training.attempt import attempt, error_left, settings_digest
from training.errors import ConfigurationError
from training.starts import FAILED, FINISHED, START_VARIABLE, STOPPED, read_starts


@pytest.fixture
def config(tmp_path: Path) -> DictConfig:
    return OmegaConf.create({"run": {"folder": str(tmp_path), "max_failures": 2}, "steps": 4})


def fail(config: DictConfig, step: int, error: BaseException) -> None:
    with attempt(config, step, ["here"], 1):
        raise error


def test_how_it_ended(config: DictConfig, tmp_path: Path) -> None:
    with attempt(config, 0, ["here"], 1) as begun:
        assert begun.environment == {START_VARIABLE: "1"}
        begun.ends(STOPPED)
    with pytest.raises(ValueError):
        fail(config, 3, ValueError("first line\nsecond"))
    with pytest.raises(KeyboardInterrupt):
        fail(config, 3, KeyboardInterrupt())
    with attempt(config, 3, ["here", "there"], 2) as begun:
        begun.ends(FINISHED)
    starts = read_starts(tmp_path)
    assert [start.end for start in starts] == [STOPPED, FAILED, STOPPED, FINISHED]
    assert starts[1].error == "ValueError: first line"
    assert starts[3].nodes == ["here", "there"]


def test_a_crash_loop_is_refused_and_no_start(config: DictConfig, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError):
            fail(config, 3, KeyError("x"))
    with pytest.raises(
        ConfigurationError, match=r"run\.max_failures=2: the last 2 starts .*from step 3.*KeyError: 'x'"
    ):
        fail(config, 3, AssertionError("was made"))
    assert len(read_starts(tmp_path)) == 2
    config.run.max_failures = 3
    with attempt(config, 3, ["here"], 1) as begun:
        begun.ends(FAILED, "KeyError: 'x'")
    with pytest.raises(ConfigurationError, match=r"run\.max_failures=4 to try once more"):
        fail(config, 3, AssertionError("was made"))
    config.steps = 5
    with attempt(config, 3, ["here"], 1) as begun:
        begun.ends(FINISHED)


def test_a_rank_of_another_launcher_leaves_its_error(
    config: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main rank fails as it misses another one, whose error is the cause."""
    monkeypatch.setenv(START_VARIABLE, "1")
    with pytest.raises(ConnectionError), attempt(config, 0, ["a", "b"], 2):
        with pytest.raises(ValueError), error_left(tmp_path, 1):
            raise ValueError("the cause")
        with error_left(tmp_path, 0):
            raise ConnectionError("Connection closed by peer")
    [start] = read_starts(tmp_path)
    assert (start.end, start.error) == (FAILED, "ValueError: the cause")


def test_a_folder_that_cannot_be_written_to_is_named(config: DictConfig, tmp_path: Path) -> None:
    (tmp_path / "starts.jsonl.partial").mkdir()
    with pytest.raises(ConfigurationError, match=r"run\.folder=.*starts\.jsonl can't be written there"):
        fail(config, 0, AssertionError("was made"))


def test_the_number_of_failures_is_no_setting_of_the_run(config: DictConfig) -> None:
    before = settings_digest(config)
    config.run.max_failures = 9
    assert settings_digest(config) == before
    config.steps = 5
    assert settings_digest(config) != before
