"""A checkpoint of any ZeRO stage and number of ranks continues at any other, without conversion."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from tests.training.conftest import OnRanks
from tests.training.ranks import RankGroup
from training.checkpoint import Checkpoints
from training.checkpoint_files import CheckpointError
from training.distributed import Distributed
from training.engine import Engine
from training.engine_settings import EngineSettings
from training.optimizers.adamw import AdamW
from training.optimizers.adamw_8bit import AdamW8bit
from training.optimizers.lion import Lion

STAGES = (0, 1, 2, 3)
BATCH = 24
"""Which 1, 2, 3, 4 and 8 ranks divide."""


def build(
    stage: int,
    world: int,
    precision: str = "fp32",
    seed: int = 0,
    optimizer: type[AdamW | Lion] = AdamW,
    offload: dict[str, str] | None = None,
) -> Engine:
    """A small module whose parameters divide evenly among nobody."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(7, 13), nn.SiLU(), nn.Linear(13, 5), nn.LayerNorm(5))
    settings = EngineSettings(zero_stage=stage, precision=precision, **(offload or {}))
    return Engine(module, settings, optimizer(module.parameters(), 1e-2), BATCH // world, 1, world)


def train(engine: Engine, ranks: Distributed, first: int, last: int) -> list[float]:
    """Losses of the steps [first, last) of a regression on keyed random data."""
    losses = []
    share = slice(ranks.rank * BATCH // ranks.world, (ranks.rank + 1) * BATCH // ranks.world)
    for step in range(first, last):
        numbers = torch.Generator().manual_seed(step)
        x, y = torch.randn(BATCH, 7, generator=numbers)[share], torch.randn(BATCH, 5, generator=numbers)[share]
        loss = (engine(x.to(engine.dtype)).float() - y).square().mean()
        engine.backward(loss)
        assert engine.step(1e-2)
        losses.append(ranks.all_reduce_mean(loss.detach()).item())
    return losses


def save_at_every_stage(ranks: Distributed, folder: Path) -> dict[str, torch.Tensor]:
    """Four steps and a checkpoint at each stage, then the losses and EMA of four more."""
    found = {}
    for stage in STAGES:
        engine = build(stage, ranks.world)
        train(engine, ranks, 0, 4)
        checkpoints = Checkpoints(folder / f"{ranks.world} ranks, stage {stage}", ranks)
        checkpoints.save({"model": engine}, 4, 32, {})
        found[f"stage {stage} losses"] = torch.tensor(train(engine, ranks, 4, 8))  # while step 4 is being written
        checkpoints.finish()
        found |= {f"stage {stage} {name}": tensor.clone() for name, tensor in engine.gather("ema")}
    return found


def load_at_every_stage(ranks: Distributed, folder: Path) -> dict[str, torch.Tensor]:
    """The same four further steps, from every checkpoint in the folder at every stage."""
    found = {}
    for saved in sorted(folder.glob("*ranks, stage*")):
        for stage in STAGES:
            engine = build(stage, ranks.world, seed=1)
            train(engine, ranks, 0, 1)  # a restore must replace everything, state of a step made before too
            manifest = Checkpoints(saved, ranks).restore_newest({"model": engine})
            assert manifest is not None and manifest.step == 4 and engine.updates == 4
            case = f"{saved.name} at {ranks.world} ranks, stage {stage}"
            found[f"{case}: losses"] = torch.tensor(train(engine, ranks, 4, 8))
            found |= {f"{case}: {name}": tensor.clone() for name, tensor in engine.gather("ema")}
    return found


@pytest.mark.parametrize("worlds", [(1, 2), pytest.param((1, 2, 4), marks=pytest.mark.slow)])
def test_any_stage_and_number_of_ranks_continues_from_any_other(
    worlds: tuple[int, ...], tmp_path: Path, on_ranks: OnRanks
) -> None:
    straight, *_ = [on_ranks(world, save_at_every_stage, tmp_path) for world in worlds]
    cases = 0
    for world in worlds:
        for key, value in on_ranks(world, load_at_every_stage, tmp_path).items():
            stage, name = key.split("stage ")[1][0], key.split(": ")[1]
            wanted = straight[f"stage {stage} {name}"]
            near = {"rtol": 1e-5, "atol": 1e-6} if name == "losses" else {"rtol": 0, "atol": 1e-6}  # the average
            torch.testing.assert_close(value, wanted, **near, msg=lambda m, k=key: f"{k}: {m}")
            cases += name == "losses"
    assert cases == (len(worlds) * len(STAGES)) ** 2


SAVED_ON, LOADED_ON = 4, (1, 2, 3, 8)
FURTHER = 20


def saved(ranks: Distributed, folder: Path) -> torch.Tensor:
    """Losses after a checkpoint of ZeRO 2. [FURTHER]."""
    engine = build(2, ranks.world)
    train(engine, ranks, 0, 4)
    checkpoints = Checkpoints(folder, ranks)
    checkpoints.save({"model": engine}, 4, 4 * BATCH, {})
    checkpoints.finish()
    return torch.tensor(train(engine, ranks, 4, 4 + FURTHER))


def loaded(ranks: Distributed, folder: Path) -> torch.Tensor:
    """Losses after it at ZeRO 1, 2 and 3. [3, FURTHER]."""
    found = []
    for stage in (1, 2, 3):
        engine = build(stage, ranks.world, seed=1)
        assert Checkpoints(folder, ranks).restore_newest({"model": engine}) is not None
        found.append(train(engine, ranks, 4, 4 + FURTHER))
    return torch.tensor(found)


@pytest.mark.slow
def test_what_four_ranks_saved_goes_on_with_fewer_odd_numbers_and_more(tmp_path: Path) -> None:
    found = {}
    for world in (SAVED_ON, *LOADED_ON):
        group = RankGroup(world)
        try:
            found[world] = group.run(saved if world == SAVED_ON else loaded, tmp_path)
        finally:
            group.kill()
    for world in LOADED_ON:
        far = (found[world] / found[SAVED_ON] - 1).abs().max().item()
        assert far < 1e-4, f"{world} ranks: losses differ by {far:.1e} relative"


def half_precision(ranks: Distributed, folder: Path) -> dict[str, torch.Tensor]:
    """bf16 with fp32 master weights: straight and restored losses at each stage that keeps them."""
    found = {}
    for stage in (1, 2, 3):
        engine = build(stage, ranks.world, "bf16")
        train(engine, ranks, 0, 4)
        checkpoints = Checkpoints(folder / f"stage{stage}", ranks)
        checkpoints.save({"model": engine}, 4, 32, {})
        straight = train(engine, ranks, 4, 8)
        checkpoints.finish()
        again = build(stage, ranks.world, "bf16", seed=1)
        checkpoints.restore_newest({"model": again})
        found[f"stage{stage}"] = torch.tensor([straight, train(again, ranks, 4, 8)])
    return found


def test_bf16_keeps_its_fp32_master_weights(tmp_path: Path, on_ranks: OnRanks) -> None:
    for stage, (straight, restored) in on_ranks(2, half_precision, tmp_path).items():
        assert torch.equal(straight, restored), stage


OTHERS: dict[str, type[AdamW | Lion]] = {"8bit": AdamW8bit, "lion": Lion}


def other_optimizers(ranks: Distributed, folder: Path) -> dict[str, torch.Tensor]:
    """Losses of four steps after four: straight, restored at the same stage, and at another one. [3, 4] by case."""
    found = {}
    for name, kind in OTHERS.items():
        for stage in STAGES:
            engine = build(stage, ranks.world, optimizer=kind)
            train(engine, ranks, 0, 4)
            checkpoints = Checkpoints(folder / f"{ranks.world} ranks, {name}, {stage}", ranks)
            checkpoints.save({"model": engine}, 4, 32, {})
            losses = [train(engine, ranks, 4, 8)]
            checkpoints.finish()
            for other in (stage, (stage + 1) % 4):
                engine = build(other, ranks.world, seed=1, optimizer=kind)
                train(engine, ranks, 0, 1)
                checkpoints.restore_newest({"model": engine})
                losses.append(train(engine, ranks, 4, 8))
            found[f"{name} stage{stage}"] = torch.tensor(losses)
    return found


@pytest.mark.slow
def test_every_optimizer_continues_and_at_any_other_stage(tmp_path: Path, on_ranks: OnRanks) -> None:
    for world in (1, 2):
        for case, (straight, same, other) in on_ranks(world, other_optimizers, tmp_path).items():
            assert torch.equal(same, straight), f"{world} ranks, {case}"
            # Blocks of eight bits lie differently there, and so are rounded differently.
            near = 1e-2 if case.startswith("8bit") else 1e-5
            torch.testing.assert_close(other, straight, rtol=near, atol=0, msg=lambda m, c=case: f"{c}: {m}")


def of_another_optimizer(ranks: Distributed, folder: Path) -> dict[str, str]:
    """What Lion says to a checkpoint of AdamW's, and AdamW in eight bits, to which it is one of its own."""
    engine = build(2, ranks.world)
    checkpoints = Checkpoints(folder, ranks)
    checkpoints.save({"model": engine}, 4, 32, {})
    checkpoints.finish()
    said = {}
    for name, kind in OTHERS.items():
        try:
            checkpoints.restore_newest({"model": build(2, ranks.world, optimizer=kind)})
        except CheckpointError as error:
            said[name] = str(error)
    return said


def test_moments_of_another_optimizer_are_refused(tmp_path: Path, on_ranks: OnRanks) -> None:
    said = on_ranks(1, of_another_optimizer, tmp_path)
    assert said.keys() == {"lion"}
    assert "is of another optimizer" in said["lion"]


OFFLOADS: dict[str, tuple[int, str, dict[str, str]]] = {
    "1, cpu": (1, "bf16", {"offload_optimizer": "cpu"}),
    "2, cpu": (2, "fp32", {"offload_optimizer": "cpu"}),
    "3, cpu": (3, "bf16", {"offload_optimizer": "cpu", "offload_param": "cpu"}),
    "3, nvme": (3, "fp32", {"offload_optimizer": "nvme"}),
    "3, nvme, weights on cpu": (3, "bf16", {"offload_optimizer": "nvme", "offload_param": "cpu"}),
    "3, nvme, weights too": (3, "bf16", {"offload_optimizer": "nvme", "offload_param": "nvme"}),
    "3, weights alone on nvme": (3, "fp32", {"offload_optimizer": "cpu", "offload_param": "nvme"}),
}


def offloaded_and_not(ranks: Distributed, folder: Path) -> dict[str, torch.Tensor]:
    """By case, pairs [2, ...] of what should be equal: with offload and without."""
    found = {}
    folder.mkdir(exist_ok=True)
    for case, (stage, precision, offload) in OFFLOADS.items():
        offload = offload | {"offload_folder": str(folder)}
        with mock.patch("training.engine_settings.OFFLOADED_GROUP_ELEMENTS", 50):  # several groups
            engines = [build(stage, ranks.world, precision), build(stage, ranks.world, precision, offload=offload)]
        checkpoints = [Checkpoints(folder / f"{case} {n}", ranks) for n in range(2)]
        losses = []
        for engine, kept in zip(engines, checkpoints, strict=True):
            losses.append(train(engine, ranks, 0, 4))
            kept.save({"model": engine}, 4, 32, {})
            losses[-1] += train(engine, ranks, 4, 6)
            kept.finish()
        found[f"{case}: losses"] = torch.tensor(losses)
        found[f"{case}: update"] = torch.stack([engine.update_squares() for engine in engines])
        for kind in engines[0].kinds:
            whole = [dict(engine.gather(kind)) for engine in engines]
            found[f"{case}: {kind}"] = torch.stack([torch.cat([t.view(-1) for t in w.values()]) for w in whole])
        # Each goes on from the other's checkpoint.
        for engine, other in zip(engines, reversed(checkpoints), strict=True):
            assert other.restore_newest({"model": engine}) is not None
        again = torch.tensor([train(engine, ranks, 4, 6) for engine in engines])
        found[f"{case}: resumed"] = torch.stack([again.view(-1), torch.tensor([one[4:] for one in losses]).view(-1)])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_offloaded_state_trains_is_saved_and_restored_as_state_that_is_not(
    world: int, tmp_path: Path, on_ranks: OnRanks
) -> None:
    found = on_ranks(world, offloaded_and_not, tmp_path)
    assert len(found) == 7 * len(OFFLOADS)
    for key, (plain, offloaded) in found.items():
        torch.testing.assert_close(offloaded, plain, rtol=1e-6, atol=1e-7, msg=lambda m, k=key: f"{k}: {m}")
