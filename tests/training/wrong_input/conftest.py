"""A run that lacks nothing, and the command that must refuse what is wrong about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from tests.training.wrong_input.refusals import Refused, the_message
from training import launch


@pytest.fixture
def base(tiny_diffusion: list[str], tmp_path: Path) -> list[str]:
    """A run of two ranks that lacks nothing."""
    return [*tiny_diffusion, "run.ranks=2", "steps=4", f"run.folder={tmp_path / 'run'}"]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, ldm_fails: Callable[..., tuple[str, str]]) -> Refused:
    """Runs `ldm train` in this process; returns its one message. Fails when it starts ranks or says more."""

    def no_ranks(*arguments: object) -> NoReturn:
        pytest.fail("ranks were started")

    monkeypatch.setattr(launch, "start_ranks", no_ranks)

    def run(overrides: list[str]) -> str:
        message = the_message(*ldm_fails("train", *overrides))
        assert not torch.distributed.is_initialized()
        return message

    return run
