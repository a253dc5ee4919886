"""Half precision with a scaled loss: an update whose gradient overflows isn't made, and lowers the scale in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.conftest import OnRanks
from tests.training.test_elastic import train
from tests.training.test_laws import straight_and_interrupted, unequal
from training.checkpoint_files import Reader
from training.distributed import Distributed
from training.engine import Engine
from training.engine_settings import EngineSettings
from training.optimizers.adamw import AdamW

STAGES = (1, 2, 3)
SCALE = 1024.0
"""With which these gradients fit; the one that DeepSpeed begins with is larger."""
pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_fp16_supported()),
    reason="this machine's processor doesn't compute in float16",
)


def build(stage: int, precision: str, world: int) -> Engine:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(7, 13), nn.SiLU(), nn.Linear(13, 5), nn.LayerNorm(5))
    settings = EngineSettings(zero_stage=stage, precision=precision)
    return Engine(module, settings, AdamW(module.parameters(), 1e-2), 24 // world, 1, world)


def overflowing(ranks: Distributed) -> dict[str, Any]:
    """By stage: losses in fp32 and fp16; then, of two updates that overflow on one rank, whether they changed
    anything, how many updates were made and the scale; and the same of one that doesn't."""
    found: dict[str, Any] = {}
    for stage in STAGES:
        losses = [train(build(stage, "fp32", ranks.world), ranks, 0, 5)]
        engine = build(stage, "fp16", ranks.world)
        engine.set_loss_scaling(engine.loss_scaling | {"cur_scale": SCALE})
        losses.append(train(engine, ranks, 0, 5))
        told = []
        for factor in (1e6, 1e6, 1.0):
            before = [f.tensors[kind].clone() for f in engine.fragments() for kind in engine.kinds]
            loss = engine(torch.ones(2, 7).half()).float().square().mean()
            engine.backward(loss * (factor if ranks.is_main else 1.0))
            assert engine.step(1e-2)
            after = [f.tensors[kind] for f in engine.fragments() for kind in engine.kinds]
            same = all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
            told.append([same, engine.updates, engine.loss_scaling["cur_scale"]])
        found[str(stage)] = (losses, ranks.gather_objects(told))
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_an_update_that_overflows_is_left_out_on_every_rank(world: int, on_ranks: OnRanks) -> None:
    for stage, (losses, everyone) in on_ranks(world, overflowing).items():
        whole, half = torch.tensor(losses)
        torch.testing.assert_close(half, whole, rtol=5e-3, atol=0, msg=f"ZeRO {stage}")
        for told in everyone:
            # The first of a series is forgiven.
            assert told == [[True, 5, SCALE], [True, 5, SCALE / 2], [False, 6, SCALE / 2]], f"ZeRO {stage}"


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit_with_its_scale(tiny_diffusion: list[str], tmp_path: Path, on_ranks: OnRanks) -> None:
    half = [*tiny_diffusion, "engine=zero2", "engine.precision=fp16"]
    assert unequal(on_ranks(2, straight_and_interrupted, half, tmp_path)) == {}
    kept = Reader(tmp_path / "interrupted" / "checkpoints" / "step-00000004").manifest.extra["loss_scaling"]
    assert kept["model"]["cur_iter"] == 4
