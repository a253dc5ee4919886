"""What went wrong decides the exit status, which decides whether a scheduler tries again."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from data.errors import DataError, NotFound
from data.stream import Storage
from training.checkpoint_files import CheckpointError, CheckpointNotWritten
from training.dataset import about
from training.errors import OUTAGE_STATUS, ConfigurationError
from training.job import exit_status
from training.non_finite import NonFiniteStep


@pytest.mark.parametrize(
    "error",
    [
        *(ConfigurationError("steps", 0, "more"), DataError("x"), NotFound("x"), CheckpointError("all are damaged")),
        NonFiniteStep("x", 0, [], untouched=True),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_would_fail_again(error: Exception) -> None:
    assert exit_status(error) == 2


def test_what_may_be_better_later(deaf_port: int) -> None:
    assert exit_status(CheckpointNotWritten("no space left on device")) == OUTAGE_STATUS
    gone = Storage(f"http://127.0.0.1:{deaf_port}", anonymous=True, patience_seconds=0, timeout_seconds=0.5)
    for ask in (lambda: gone.read("s3://bucket/a.tar", 0, 4), lambda: gone.check("s3://bucket/a.tar")):
        with pytest.raises(DataError) as raised, about("data.train", "s3://bucket/a.tar"):
            ask()
        assert exit_status(raised.value) == OUTAGE_STATUS
        assert str(raised.value).startswith("data.train=s3://bucket/a.tar: ")


def test_what_nobody_foresaw() -> None:
    assert exit_status(KeyError("x")) is None


RANK = """
from training.distributed import initialise
from training.job import status_kept

with status_kept():
    ranks = initialise()
    for _ in range(20):
        ranks.gather_objects("here")
    raise SystemExit(74)
"""


@pytest.mark.slow
def test_a_rank_that_leaves_its_group_keeps_its_status(deaf_port: int) -> None:
    """Without care every fourth pair of processes has one that aborts: torch 2.14 over gloo."""
    for attempt in range(12):
        place = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(deaf_port)}
        ranks = [
            subprocess.Popen([sys.executable, "-c", RANK], env={**os.environ, **place, "RANK": str(rank)})
            for rank in range(2)
        ]
        assert [rank.wait(60) for rank in ranks] == [74, 74], attempt


@pytest.fixture
def deaf_port() -> int:
    """A port at which nobody listens."""

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
