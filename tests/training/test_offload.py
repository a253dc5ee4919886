"""Files as memory: what is written is there, zeros take no room, nothing stays behind. And the checks of a folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from omegaconf import OmegaConf

from tests.resident import resident
from training.errors import ConfigurationError
from training.offload import BLOCK_BYTES, MappedFiles
from training.offload_checks import bytes_needed, check_room

BLOCK = BLOCK_BYTES // 4
ELEMENTS = 16 * BLOCK


@pytest.fixture
def handles() -> Iterator[list[int]]:
    """Of the files without names that are made within the test."""
    found: list[int] = []
    make = tempfile.TemporaryFile

    def noted(**keywords: Any) -> Any:
        file = make(**keywords)
        found.append(os.dup(file.fileno()))
        return file

    with mock.patch("tempfile.TemporaryFile", noted):
        yield found
    for handle in found:
        os.close(handle)


def room(handle: int) -> int:
    """Blocks that a file takes on the disk."""
    return os.fstat(handle).st_blocks * 512 // BLOCK_BYTES


def test_what_left_memory_is_there_when_it_is_looked_at(tmp_path: Path) -> None:
    files = MappedFiles(str(tmp_path))
    values = torch.arange(1, ELEMENTS + 1, dtype=torch.float32)
    tensor = files.zeros(ELEMENTS)
    tensor.copy_(values)
    before = resident("VmRSS")
    files.release([tensor])
    assert before - resident("VmRSS") > 0.9 * tensor.nbytes
    assert torch.equal(tensor, values)
    assert list(tmp_path.iterdir()) == [], "a name would outlive a killed process"


def test_blocks_of_zeros_take_no_room(tmp_path: Path, handles: list[int]) -> None:
    files = MappedFiles(str(tmp_path))
    values = torch.zeros(ELEMENTS)
    values[5 * BLOCK + 3] = 1.0
    tensor = files.holding(values)
    assert room(handles[0]) == 1
    assert torch.equal(tensor, values)
    tensor.fill_(2.0)
    assert room(handles[0]) == 16
    view = tensor[BLOCK // 2 : 4 * BLOCK]  # of whole blocks 1, 2 and 3
    view.zero_()
    files.release([view])
    assert room(handles[0]) == 13
    assert torch.equal(tensor, torch.cat([torch.full((BLOCK // 2,), 2.0), torch.zeros(len(view)), tensor[4 * BLOCK :]]))
    assert tensor[4 * BLOCK :].eq(2.0).all()


def test_what_is_forgotten_is_zeros_without_room(tmp_path: Path, handles: list[int]) -> None:
    files = MappedFiles(str(tmp_path))
    tensor = files.holding(torch.ones(BLOCK + 1, dtype=torch.bfloat16))
    files.forget(tensor)
    assert not tensor.any() and os.fstat(handles[0]).st_blocks == 0


def settings(**engine: Any) -> Any:
    """As much of a configuration as the check reads."""
    known = {"precision": "bf16", "offload_optimizer": None, "offload_param": None, "offload_folder": None}
    return OmegaConf.create({"engine": known | engine, "optimizer": {"averages": {"ema": None, "long": None}}})


SHAPES = {"model": {"weight": [100, 10]}, "discriminator": {"bias": [24]}}


@pytest.mark.parametrize(
    ("engine", "bytes_each"),
    [
        ({}, 0),
        ({"offload_optimizer": "cpu", "offload_param": "cpu"}, 0),
        ({"offload_optimizer": "nvme"}, 4 + 4 + 8 + 2 * 4),
        ({"offload_optimizer": "nvme", "offload_param": "nvme"}, 4 + 4 + 8 + 2 * 4 + 2),
        ({"offload_optimizer": "cpu", "offload_param": "nvme", "precision": "fp32"}, 4),
    ],
)
def test_the_ranks_of_a_machine_need_room_for_their_shares(
    engine: dict[str, str], bytes_each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert bytes_needed(settings(**engine), SHAPES, 8) == 1024 * bytes_each
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "4")
    assert bytes_needed(settings(**engine), SHAPES, 8) == 1024 * bytes_each // 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert bytes_needed(settings(**engine), SHAPES, 8) == 1024 * bytes_each // 8


def test_a_folder_that_is_missing_or_too_small_is_refused(tmp_path: Path) -> None:
    shapes = {"model": {"weight": [10**6, 10**6]}}
    for folder, shape, says in (
        (tmp_path / "none", SHAPES, "no such folder on this machine"),
        (tmp_path, shapes, r"2\.4e\+04 GB are needed there and .* GB are free"),
    ):
        with pytest.raises(ConfigurationError, match=f"^engine.offload_folder={folder}: {says}"):
            check_room(settings(offload_optimizer="nvme", offload_folder=str(folder)), shape, 1)
    check_room(settings(offload_optimizer="nvme", offload_folder=str(tmp_path)), SHAPES, 1)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    with (
        mock.patch("os.access", return_value=False),  # tests may run as root, who may write everywhere
        pytest.raises(ConfigurationError, match=f"^engine.offload_folder={tmp_path}: it can't be written to"),
    ):
        check_room(settings(offload_optimizer="nvme", offload_folder=str(tmp_path)), SHAPES, 1)
