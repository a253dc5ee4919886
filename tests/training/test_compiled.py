"""torch.compile changes how fast a step is, and nothing that a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn
from torch._inductor import compile_fx

from models.layers import Linear
from tests.training.conftest import OnRanks
from tests.training.test_elastic import BATCH, train
from training.checkpoint import Checkpoints
from training.distributed import Distributed
from training.engine import Engine
from training.engine_settings import EngineSettings
from training.optimizers.adamw import AdamW


def build(ranks: Distributed, mode: str | None) -> Engine:
    """A small module of our own layers, which call other kernels when they are compiled."""
    torch.manual_seed(0)
    module = nn.Sequential(Linear(7, 13), nn.SiLU(), Linear(13, 5), nn.LayerNorm(5))
    optimizer = AdamW(module.parameters(), 1e-2)
    return Engine(module, EngineSettings(compile=mode), optimizer, BATCH // ranks.world, 1, ranks.world)


def as_it_is_and_compiled(ranks: Distributed, folder: Path) -> dict[str, torch.Tensor]:
    """Losses of 20 steps, saved and restored after ten: as the module is, and with the first or last ten compiled."""
    found, compiled = {}, 0
    for name, modes in {"as it is": (None, None), "before": ("default", None), "later": (None, "default")}.items():
        checkpoints = Checkpoints(folder / name, ranks)
        losses = []
        for first, mode in zip((0, 10), modes, strict=True):
            engine = build(ranks, mode)
            checkpoints.restore_newest({"model": engine})
            torch._dynamo.reset()  # or what one engine compiled would be taken for the next
            with mock.patch.object(compile_fx, "compile_fx", wraps=compile_fx.compile_fx) as seen:
                losses += train(engine, ranks, first, first + 10)
            compiled += seen.call_count > 0
            assert list(engine.shapes) == ["0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias"]
            checkpoints.save({"model": engine}, first + 10, 0, {})
            checkpoints.finish()
        found[name] = torch.tensor(losses, dtype=torch.float64)
    return found | {"compiled": torch.tensor(compiled)}


@pytest.mark.slow
def test_losses_and_checkpoints_are_those_of_the_module_as_it_is(tmp_path: Path, on_ranks: OnRanks) -> None:
    found = on_ranks(1, as_it_is_and_compiled, tmp_path)
    assert found["compiled"] == 2
    reference = found["as it is"]
    for name in ("before", "later"):
        assert ((found[name] - reference) / reference).abs().max() < 1e-4, name
