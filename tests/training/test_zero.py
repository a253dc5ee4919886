"""ZeRO's stages, numbers of ranks, accumulation and activation checkpointing share the work out; losses don't tell."""

from __future__ import annotations

import pytest
import torch

from models.unet import UNet
from tests.training.conftest import OnRanks
from training.distributed import Distributed
from training.engine import Engine
from training.engine_settings import EngineSettings
from training.optimizers.adamw import AdamW

STAGES = (0, 1, 2, 3)
STEPS = 50
BATCH = 8
WAYS: dict[str, tuple[bool | list[str], int]] = {
    "plain": (False, 1),
    "checkpointed, accumulated": (["down", "up.1"], 2),
}
"""Which blocks are checkpointed, and micro-batches of a step."""


def losses(ranks: Distributed, stage: int, checkpointing: bool | list[str], accumulation: int) -> list[float]:
    """Of 50 steps of a small UNet that learns to take noise away."""
    torch.manual_seed(0)
    unet = UNet(4, 4, 32, (1, 2), 1, (2,), heads=2, context_width=8, activation_checkpointing=checkpointing)
    micro = BATCH // ranks.world // accumulation
    optimizer = AdamW(unet.parameters(), 1e-3)
    engine = Engine(unet, EngineSettings(zero_stage=stage), optimizer, micro, accumulation, ranks.world)
    found = []
    for step in range(STEPS):
        numbers = torch.Generator().manual_seed(step)
        shapes = ((BATCH, 4, 4, 4), (BATCH, 4, 4, 4), (BATCH, 3, 8))
        z_0, eps, context = (torch.randn(shape, generator=numbers) for shape in shapes)
        t = torch.randint(1000, (BATCH,), generator=numbers)
        total = torch.zeros(())
        for part in range(accumulation):
            start = (ranks.rank * accumulation + part) * micro
            rows = slice(start, start + micro)
            output = engine(0.2 * z_0[rows] + eps[rows], t[rows], context[rows])
            loss = (output - eps[rows]).square().mean()
            engine.backward(loss)
            assert engine.step(1e-3) == (part == accumulation - 1)
            total += loss.detach() / accumulation
        found.append(ranks.all_reduce_mean(total).item())
    return found


def every_way(ranks: Distributed) -> dict[str, torch.Tensor]:
    """Losses of every stage and way, float64 [50] each."""
    return {
        f"zero{stage} {name}": torch.tensor(losses(ranks, stage, *way), dtype=torch.float64)
        for stage in STAGES
        for name, way in WAYS.items()
    }


@pytest.mark.slow
def test_losses_are_those_of_one_rank_without_zero(on_ranks: OnRanks) -> None:
    found = {world: on_ranks(world, every_way) for world in (1, 2, 4)}
    reference = found[1]["zero0 plain"]
    assert reference[-1] < 0.7 * reference[0]
    for world, cases in found.items():
        assert len(cases) == len(STAGES) * len(WAYS)
        for case, values in cases.items():
            far = ((values - reference) / reference).abs().max().item()
            assert far < 1e-4, f"{world} ranks, {case}: losses differ by {far:.1e} relative"
