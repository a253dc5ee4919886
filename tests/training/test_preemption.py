"""A request to stop finds the run in the midst of something, and leaves it whole."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any
from unittest import mock

from tests.training import runs
from tests.training.conftest import OnRanks
from training.checkpoint_files import complete_checkpoints, problems, step_of
from training.checkpoint_share import Share
from training.distributed import Distributed
from training.preemption import StopRequest

SAVED, ASKED = 2, 4
"""The step whose save is still under way when the run is asked to stop, and the step that is under way then."""


def asked_amid_a_save(ranks: Distributed, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Trains; rank 1 can't write before the run is asked to stop. Returns what is there when it has left."""
    may_write = threading.Event()
    write = Share.write
    requests: list[StopRequest] = []
    begun = StopRequest.__init__

    def slow(share: Share, path: Path) -> Any:
        assert ranks.is_main or may_write.wait(60)
        return write(share, path)

    class AsksAtStep(runs.NoMonitor):
        def look(self, step: int) -> dict[str, float]:
            assert not list(complete_checkpoints(folder / "checkpoints"))
            if step == ASKED - 1 and ranks.rank == 1:
                signal.raise_signal(signal.SIGUSR1)
                threading.Timer(1.0, may_write.set).start()
            return {}

    def noted(request: StopRequest) -> None:
        begun(request)
        requests.append(request)

    with (
        mock.patch.object(Share, "write", slow),
        mock.patch.object(runs, "NoMonitor", AsksAtStep),
        mock.patch.object(StopRequest, "__init__", noted),
    ):
        _, rows = runs.train(ranks, [*overrides, f"checkpoint.every={SAVED}"], folder, 100)
    checkpoints = list(complete_checkpoints(folder / "checkpoints"))
    received = [request.received is not None for request in requests]
    return {
        "saved": [step_of(path) for path in checkpoints],
        "problems": [problem for path in checkpoints for problem in problems(path)],
        "rows": [row["step"] for row in rows],
        "received": ranks.gather_objects(received),
    }


def test_a_save_that_is_under_way_is_waited_for(tiny_diffusion: list[str], tmp_path: Path, on_ranks: OnRanks) -> None:
    found = on_ranks(2, asked_amid_a_save, tiny_diffusion, tmp_path)
    assert found["received"] == [[False], [True]], "one rank alone was asked"
    assert found["saved"] == [ASKED, SAVED]
    assert found["problems"] == []
    assert found["rows"] == list(range(ASKED + 1)), "the step was finished, and no other begun"
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == ASKED
