"""Averages of the weights: their rules, and that sharding doesn't change them."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.resident import resident
from tests.training.conftest import OnRanks
from tests.training.ranks import RankGroup
from training.checkpoint import Checkpoints
from training.distributed import Distributed
from training.ema import DecayRule, Fixed, PowerFunction, WarmedUp
from training.engine import Engine
from training.engine_settings import EngineSettings
from training.optimizers.adamw import AdamW

RULES: dict[str, DecayRule] = {"ema": WarmedUp(0.99), "fixed": Fixed(0.9), "power": PowerFunction(0.1)}
STAGES = (0, 1, 2, 3)
STEPS = 6


def decay(rule: DecayRule, update: int) -> float:
    return rule.at(torch.tensor(float(update))).item()


def test_warmed_up_is_the_published_rule() -> None:
    rule = WarmedUp(0.9999)
    assert decay(rule, 1) == pytest.approx(2 / 11)
    assert decay(rule, 10) == pytest.approx(11 / 20)
    assert decay(rule, 10**6) == pytest.approx(0.9999)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_power_function_window_has_its_width(width: float) -> None:
    rule, updates = PowerFunction(width), 2000
    decays = np.array([decay(rule, n) for n in range(1, updates + 1)])
    # Weight of each update's parameters in the last average: what it brought, times all decays after it.
    weights = (1 - decays) * np.append(np.cumprod(decays[:0:-1])[::-1], 1)
    assert weights.sum() == pytest.approx(1, abs=1e-4)
    times = np.arange(1, updates + 1) / updates
    deviation = np.sqrt(weights @ times**2 - (weights @ times) ** 2)
    assert deviation == pytest.approx(width, rel=2e-3)


def test_widths_and_decays_out_of_range_are_refused() -> None:
    for make in (lambda: PowerFunction(0.0), lambda: PowerFunction(0.3), lambda: Fixed(1.0), lambda: WarmedUp(-0.1)):
        with pytest.raises(ValueError, match="it must be"):
            make()


def build(stage: int, world: int) -> Engine:
    """A small module whose parameters divide evenly among nobody, with three averages."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(7, 13), nn.SiLU(), nn.Linear(13, 5))
    optimizer = AdamW(module.parameters(), 1e-2, averages=RULES)
    return Engine(module, EngineSettings(zero_stage=stage), optimizer, 4, 1, world)


def train(engine: Engine, ranks: Distributed, steps: range, whole: dict[str, dict[str, torch.Tensor]]) -> None:
    """Trains, and averages whole weights beside it into `whole`, by rule and parameter, in float64."""
    for step in steps:
        x = torch.randn(4, 7, generator=torch.Generator().manual_seed(step))
        engine.backward(engine(x).square().mean())
        engine.step(1e-2)
        weights = {name: tensor.double() for name, tensor in engine.gather("param")}
        for kind, rule in RULES.items():
            beta = decay(rule, step + 1)
            for name, weight in weights.items():
                whole[kind][name] = beta * whole[kind][name] + (1 - beta) * weight


def furthest(ranks: Distributed, folder: Path) -> dict[str, torch.Tensor]:
    """Largest difference of each average from the unsharded one, straight and after a restart."""
    found = {}
    for stage in STAGES:
        engine = build(stage, ranks.world)
        whole = {kind: {name: t.double() for name, t in engine.gather("param")} for kind in RULES}
        train(engine, ranks, range(STEPS), whole)
        checkpoints = Checkpoints(folder / f"{stage}-{ranks.world}", ranks)
        checkpoints.save({"model": engine}, STEPS, 0, {})
        checkpoints.finish()
        again = build((stage + 1) % 4, ranks.world)
        assert checkpoints.restore_newest({"model": again}) is not None
        train(again, ranks, range(STEPS, 2 * STEPS), whole)
        for kind in RULES:
            far = [(tensor - whole[kind][name]).abs().max() for name, tensor in again.gather(kind)]
            found[f"stage {stage} {kind}"] = torch.stack(far).max()
    return found


def test_every_average_is_that_of_whole_weights(tmp_path: Path, on_ranks: OnRanks) -> None:
    for world in (1, 2):
        found = on_ranks(world, furthest, tmp_path)
        assert len(found) == len(STAGES) * len(RULES)
        for case, difference in found.items():
            assert difference < 1e-6, f"{world} ranks, {case}"


def added_later(ranks: Distributed, folder: Path) -> dict[str, torch.Tensor]:
    """An average that a checkpoint doesn't have begins as the one that every run keeps."""
    torch.manual_seed(0)
    engines = []
    for rules in ({"ema": WarmedUp()}, RULES):
        module = nn.Linear(3, 2)
        optimizer = AdamW(module.parameters(), 1e-2, averages=rules)
        engines.append(Engine(module, EngineSettings(), optimizer, 4, 1, ranks.world))
    engines[0].backward(engines[0](torch.ones(4, 3)).square().mean())
    engines[0].step(1e-2)
    checkpoints = Checkpoints(folder, ranks)
    checkpoints.save({"model": engines[0]}, 1, 4, {})
    checkpoints.finish()
    checkpoints.restore_newest({"model": engines[1]})
    kept = dict(engines[0].gather("ema"))
    return {kind: torch.stack([(t - kept[n]).abs().max() for n, t in engines[1].gather(kind)]).max() for kind in RULES}


def test_an_average_added_later_begins_as_the_one_there(tmp_path: Path, on_ranks: OnRanks) -> None:
    assert [far.item() for far in on_ranks(1, added_later, tmp_path).values()] == [0.0] * len(RULES)


SIDE, LAYERS, MORE = 1024, 4, 8
MMAP_THRESHOLD = -3
"""Of malloc.h, where memory of its own begins for each tensor."""


def resident_bytes(ranks: Distributed) -> dict[str, torch.Tensor]:
    """By ZeRO stage, the memory that each further average takes on this rank, for a parameter, as the kernel counts."""
    found = {}
    ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 16)  # what is freed goes back to the kernel, or it'd be taken again
    for stage in STAGES:
        taken = []
        for averages in (1, 1, 1 + MORE):  # the first brings in what every engine needs
            gc.collect()
            before = resident("VmRSS")
            module = nn.Sequential(*(nn.Linear(SIDE, SIDE, bias=False) for _ in range(LAYERS)))
            rules = {"ema": WarmedUp()} | {f"other {number}": Fixed(0.9) for number in range(averages - 1)}
            optimizer = AdamW(module.parameters(), 1e-2, averages=rules)
            engine = Engine(module, EngineSettings(zero_stage=stage), optimizer, 4, 1, ranks.world)
            taken.append(resident("VmRSS") - before)
            del module, optimizer, engine
        found[str(stage)] = torch.tensor((taken[2] - taken[1]) / MORE / (SIDE * SIDE * LAYERS))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_an_average_takes_four_bytes_a_parameter_over_the_ranks(world: int) -> None:
    group = RankGroup(world)
    try:
        found = group.run(resident_bytes)
    finally:
        group.kill()
    for stage, taken in found.items():
        assert taken == pytest.approx(4 / (1 if stage == "0" else world), rel=0.05), f"ZeRO {stage}"
