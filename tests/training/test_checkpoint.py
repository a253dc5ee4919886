"""Saving happens behind training, restoring goes back to what is whole."""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from tests.resident import resident
from tests.training.conftest import OnRanks
from tests.training.test_elastic import build, train
from training.checkpoint import Checkpoints
from training.checkpoint_files import (
    DAMAGED,
    MANIFEST,
    CheckpointError,
    CheckpointNotWritten,
    FileEntry,
    Reader,
    folder_name,
)
from training.checkpoint_share import Share, host_memory
from training.distributed import Distributed
from training.engine import Engine
from training.retention import Retention


def names(folder: Path) -> list[str]:
    """Complete checkpoints."""
    return sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))


def while_one_rank_writes(ranks: Distributed, folder: Path) -> dict[str, Any]:
    """What is there, and what training does, while rank 1 is still writing and when it is done."""
    engine = build(2, ranks.world)
    checkpoints = Checkpoints(folder, ranks)
    may_write = threading.Event()
    write = Share.write

    def slow(share: Share, path: Path) -> FileEntry:
        assert ranks.is_main or may_write.wait(60)
        return write(share, path)

    noted: list[list[str]] = []
    with mock.patch.object(Share, "write", slow):
        train(engine, ranks, 0, 2)
        copied = {f.parameter: f.tensors["param"].clone() for f in engine.fragments()}
        stalled = checkpoints.save({"model": engine}, 2, 16, {}, before_it_counts=lambda: noted.append(names(folder)))
        train(engine, ranks, 2, 4)
        checkpoints.check()
        ranks.barrier()
        while_writing = names(folder)
        may_write.set()
        checkpoints.save({"model": engine}, 4, 32, {})  # waits for the one before, of which there is one at a time
        after_next = names(folder)
        checkpoints.finish()
    reader = Reader(folder / folder_name(2))
    equal = all(
        torch.equal(reader.interval("model", "param", f.parameter, f.start, f.stop), copied[f.parameter])
        for f in engine.fragments()
    )
    moved = any(not torch.equal(f.tensors["param"], copied[f.parameter]) for f in engine.fragments())
    found = [while_writing, after_next, names(folder), all(ranks.gather_objects(equal and moved and stalled < 30))]
    return {"found": found, "noted": noted}


def test_training_goes_on_while_the_state_it_left_is_written(tmp_path: Path, on_ranks: OnRanks) -> None:
    first, second = folder_name(2), folder_name(4)
    result = on_ranks(2, while_one_rank_writes, tmp_path)
    assert result["found"] == [[], [first], [first, second], True]
    assert result["noted"] == [[]], "once, before the checkpoint counts"


def memory_of_shares(ranks: Distributed, folder: Path) -> list[Any]:
    """Where the memory is that was got ready, and that of two shares; how often it was got, and by which threads."""
    engine = build(2, ranks.world)
    checkpoints = Checkpoints(folder, ranks)
    threads, shares = [], []

    def noted(elements: int, on_gpu: bool) -> torch.Tensor:
        threads.append(threading.current_thread() is threading.main_thread())
        return host_memory(elements, on_gpu)

    def kept(engines: dict[str, Engine], memory: torch.Tensor | None) -> Share:
        assert memory is not None
        shares.append(memory.data_ptr())
        return Share(engines, memory)

    with mock.patch("training.checkpoint.host_memory", noted), mock.patch("training.checkpoint.Share", kept):
        checkpoints.make_room({"model": engine})
        assert checkpoints._memory is not None
        ready = checkpoints._memory.result()
        for step in (1, 2):
            checkpoints.save({"model": engine}, step, 8, {})
        checkpoints.finish()
    return [[ready.data_ptr()] * 2 == shares, threads]


def test_saves_share_memory_that_was_got_ready_behind_training(tmp_path: Path, on_ranks: OnRanks) -> None:
    assert on_ranks(2, memory_of_shares, tmp_path) == [True, [False]]


def test_memory_that_is_ready_is_there() -> None:
    before = resident("VmRSS")
    memory = host_memory(2**24, on_gpu=False)
    assert resident("VmRSS") - before > 0.95 * memory.nbytes


def when_a_write_fails(ranks: Distributed, folder: Path) -> list[Any]:
    """What each of the three ways to learn of a failure on rank 1 raises, and what is there in the end."""
    engine = build(1, ranks.world)
    checkpoints = Checkpoints(folder, ranks, Retention(keep=1))
    checkpoints.save({"model": engine}, 1, 8, {})
    checkpoints.finish()
    write = Share.write

    def full(share: Share, path: Path) -> FileEntry:
        if ranks.rank == 1:
            raise OSError(28, "No space left on device", str(path))
        return write(share, path)

    def until_raised() -> None:
        while True:
            checkpoints.check()

    said = []
    again = {"check": until_raised, "save": lambda: checkpoints.save({"model": engine}, 9, 8, {})}
    for step, way in enumerate((*again, "finish"), start=2):
        with mock.patch.object(Share, "write", full):
            checkpoints.save({"model": engine}, step, 8, {})
            with pytest.raises(CheckpointError) as raised:
                again.get(way, checkpoints.finish)()
        said.append(str(raised.value))
        assert names(folder) == [folder_name(1)], "the one before stays"
    checkpoints.save({"model": engine}, 6, 8, {})
    checkpoints.finish()
    return [ranks.gather_objects(said), names(folder), sorted(path.name for path in folder.iterdir())]


def test_a_failure_behind_training_is_raised_on_every_rank(tmp_path: Path, on_ranks: OnRanks) -> None:
    (mine, others), complete, folders = on_ranks(2, when_a_write_fails, tmp_path)
    assert mine == others
    for step, message in enumerate(mine, start=2):
        assert folder_name(step) in message and "rank 1" in message and "No space left" in message
    assert complete == folders == [folder_name(6)], "a save that goes well clears away those that didn't"


def saved(ranks: Distributed, folder: Path, steps: list[int]) -> list[float]:
    """A checkpoint of each of these steps; the losses of all steps."""
    engine = build(2, ranks.world)
    checkpoints = Checkpoints(folder, ranks, Retention(keep=len(steps)))
    losses = []
    for first, step in zip([0, *steps], steps, strict=False):
        losses += train(engine, ranks, first, step)
        checkpoints.save({"model": engine}, step, step * 8, {})
    checkpoints.finish()
    return losses


def restored(ranks: Distributed, folder: Path, last: int) -> tuple[int, list[float], list[str]]:
    """The step gone back to, the losses from there on, and what the log says."""
    engine = build(2, ranks.world, seed=1)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("training.checkpoint")
    logger.addHandler(handler)
    manifest = Checkpoints(folder, ranks).restore_newest({"model": engine})
    logger.removeHandler(handler)
    assert manifest is not None
    return manifest.step, train(engine, ranks, manifest.step, last), lines


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_flipped_byte_sends_the_run_back_to_the_checkpoint_before(tmp_path: Path, on_ranks: OnRanks) -> None:
    losses = on_ranks(2, saved, tmp_path, [2, 4, 6])
    damaged = tmp_path / folder_name(6) / "rank-00001-of-00002.safetensors"
    flip_a_byte(damaged)
    for world in (2, 1):
        step, again, lines = on_ranks(world, restored, tmp_path, 6)
        assert step == 4
        torch.testing.assert_close(torch.tensor(again), torch.tensor(losses[4:]), rtol=1e-5, atol=0)
        if world == 2:
            assert again == losses[4:]
            assert len(lines) == 1 and str(damaged) in lines[0] and f"going back to {folder_name(4)}" in lines[0]
            assert names(tmp_path) == [folder_name(2), folder_name(4)]
            assert (tmp_path / folder_name(6) / DAMAGED).exists()
        else:
            assert lines == [], "it was set aside"


def test_without_any_whole_checkpoint_nothing_begins_anew(tmp_path: Path, on_ranks: OnRanks) -> None:
    on_ranks(1, saved, tmp_path, [2, 4])
    for step in (2, 4):
        flip_a_byte(tmp_path / folder_name(step) / "rank-00000-of-00001.safetensors")
    with pytest.raises(RuntimeError, match=r"all checkpoints in .* are damaged"):
        on_ranks(1, restored, tmp_path, 6)
    assert names(tmp_path) == [folder_name(2), folder_name(4)]


def test_a_share_is_what_safetensors_reads(tmp_path: Path, on_ranks: OnRanks) -> None:
    on_ranks(1, saved, tmp_path, [2])
    reader = Reader(tmp_path / folder_name(2))
    (file,) = reader.manifest.files
    stored = load_file(tmp_path / folder_name(2) / file)
    parameters = reader.engine("model").parameters
    assert stored.keys() == {f"model/{kind}/{name}" for kind in reader.manifest.kinds for name in parameters}
    for key, values in stored.items():
        _, kind, name = key.split("/")
        assert torch.equal(values, reader.tensor("model", kind, name).flatten())


def filled_up(ranks: Distributed, folder: Path) -> list[Any]:
    """What is said when the disk has no room for the second checkpoint, what is there then, and when there is room."""
    engine = build(1, ranks.world)
    checkpoints = Checkpoints(folder / "checkpoints", ranks, Retention(keep=1))
    checkpoints.save({"model": engine}, 1, 8, {})
    checkpoints.finish()
    if ranks.is_main:
        with (folder / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))
    ranks.barrier()
    with pytest.raises(CheckpointNotWritten) as raised:
        checkpoints.save({"model": engine}, 2, 16, {})
        checkpoints.finish()
    ranks.barrier()
    left = sorted(path.name for path in (folder / "checkpoints").iterdir())
    whole = checkpoints.restore_newest({"model": engine})
    if ranks.is_main:
        (folder / "filler").unlink()
    ranks.barrier()
    checkpoints.save({"model": engine}, 2, 16, {})
    checkpoints.finish()
    return [str(raised.value), left, whole is not None and whole.step, names(folder / "checkpoints")]


def test_a_full_disk_is_named_and_the_checkpoint_before_stays(small_disk: Path, on_ranks: OnRanks) -> None:
    said, left, step, after = on_ranks(2, filled_up, small_disk)
    assert str(small_disk / "checkpoints" / folder_name(2)) in said
    assert "No space left on device" in said and "has room" in said
    assert left == [folder_name(1)] and step == 1
    assert after == [folder_name(2)]
