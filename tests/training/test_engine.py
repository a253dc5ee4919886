"""An update by numbers that are infinite, or none, is never made."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from data.batch import Batch
from tests.training.conftest import OnRanks
from tests.training.runs import train
from training.distributed import Distributed
from training.engine import Engine, NonFiniteUpdate
from training.engine_settings import EngineSettings
from training.non_finite import NonFiniteStep
from training.optimizers.adamw import AdamW
from training.tasks.diffusion import DiffusionTask

STAGES = (0, 1, 2, 3)
CASES = ("loss is nan", "loss is infinite", "gradient is infinite")


def loss_of(case: str, output: torch.Tensor) -> torch.Tensor:
    """A loss that is as the case says, with a gradient by the weights."""
    mean = output.float().mean()
    if case == "loss is nan":
        return mean * float("nan")
    if case == "loss is infinite":  # its gradient is 1
        return mean + float("inf")
    return (mean - mean.detach()).abs().sqrt() if case == "gradient is infinite" else mean


def state(engine: Engine) -> torch.Tensor:
    """All that this rank holds, in one tensor."""
    return torch.cat([fragment.tensors[kind] for fragment in engine.fragments() for kind in engine.kinds])


def attempts(ranks: Distributed) -> dict[str, list[Any]]:
    """For each stage and case: what the error says, and how many numbers changed, when rank 1's second micro-batch is
    the only one at fault."""
    found = {}
    for stage in STAGES:
        for case in (*CASES, "nothing is wrong"):
            module = nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 1))
            settings = EngineSettings(zero_stage=stage)
            engine = Engine(module, settings, AdamW(module.parameters(), 1e-2), 1, 2, ranks.world)
            before, error = state(engine), None
            for micro_batch in (0, 1):
                output = engine(torch.randn(1, 3))
                at_fault = ranks.rank == ranks.world - 1 and micro_batch == 1
                engine.backward(loss_of(case if at_fault else "", output))
                try:
                    assert engine.step(1e-2) == (micro_batch == 1)
                except NonFiniteUpdate as raised:
                    assert micro_batch == 1
                    error = raised
            same = torch.equal(state(engine), before)
            said = None if error is None else ("gradient" if error.loss_is_finite else "loss")
            everyone = ranks.gather_objects([said, same, engine.updates])
            found[f"zero{stage}, {case}"] = everyone
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_every_rank_stops_before_an_update_that_is_not_finite(world: int, on_ranks: OnRanks) -> None:
    found = on_ranks(world, attempts)
    assert len(found) == len(STAGES) * (len(CASES) + 1)
    for key, everyone in found.items():
        wanted = [None, False, 1] if "nothing" in key else ["gradient" if "gradient" in key else "loss", True, 0]
        assert everyone == [wanted] * world, key


def norms(ranks: Distributed) -> torch.Tensor:
    """Gradient norms told after each of three updates at every stage, with clipping far below them. [4, 3]"""
    found = []
    for stage in STAGES:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 1))
        settings = EngineSettings(zero_stage=stage, clip_norm=0.01)
        engine = Engine(module, settings, AdamW(module.parameters(), 1e-2), 2, 2, ranks.world)
        assert engine.gradient_norm() is None
        told = []
        for step in range(3):
            x = torch.randn(2, 2 * ranks.world, 2, 3, generator=torch.Generator().manual_seed(step))
            for micro_batch in range(2):
                engine.backward(engine(x[micro_batch, ranks.rank]).square().mean())
                engine.step(1e-2)
            told.append(engine.gradient_norm())
        found.append(told)
    return torch.tensor(found)


@pytest.mark.parametrize("world", [1, 2])
def test_every_stage_tells_the_same_norm_of_the_gradient_before_clipping(world: int, on_ranks: OnRanks) -> None:
    found = on_ranks(world, norms)
    assert found.min() > 0.05
    torch.testing.assert_close(found, found[:1].expand_as(found), rtol=1e-5, atol=0)


def poisoned(losses: Any, culprit: int, task: DiffusionTask, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """`DiffusionTask.losses`, of which that of one sample is not a number."""
    found, t = losses(task, batch)
    return torch.where(batch.numbers == culprit, torch.nan, found), t


def message(ranks: Distributed, overrides: list[str], folder: Path) -> str:
    """What a run says whose sample 21 is at fault: of two micro-batches of two on each rank, in step 2."""
    patched = functools.partialmethod(functools.partial(poisoned, DiffusionTask.losses, 21))
    with mock.patch.object(DiffusionTask, "losses", patched), pytest.raises(NonFiniteStep) as raised:
        train(ranks, [*overrides, "batch.micro_size=2", "checkpoint.every=1"], folder, 4)
    return str(raised.value)


def test_step_and_samples_are_named(tiny_diffusion: list[str], tmp_path: Path, on_ranks: OnRanks) -> None:
    said = on_ranks(2, message, tiny_diffusion, tmp_path)
    named = said.split("samples [")[1].split("]")[0].split(", ")
    assert said.startswith("loss is nan in step 2, on samples")
    assert len(named) == 2 and "21" in named
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000001", "step-00000002"]
