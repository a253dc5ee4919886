"""What the diffusion task trains on, under each of its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.objective import LOSSES
from models.prediction import PREDICTIONS
from tests.training.conftest import OnRanks
from tests.training.runs import composed, train
from training.build import build_task
from training.checks import CHOICES
from training.distributed import Distributed
from training.tasks.diffusion import DiffusionTask

OBJECTIVES = {
    "epsilon": [],
    "v": ["task.prediction=v"],
    "z_0": ["task.prediction=z_0"],
    "l1": ["task.loss=l1"],
    "offset noise": ["task.offset_noise=0.2"],
    "even weights": ["task.snr_weight=null"],
    "cosine": ["schedule=cosine"],
    "v to zero SNR": ["task.prediction=v", "schedule.zero_terminal_snr=true"],
    "z_0 to zero SNR": ["task.prediction=z_0", "schedule=cosine", "schedule.zero_terminal_snr=true"],
}


def test_the_settings_are_those_of_the_models() -> None:
    assert CHOICES["task.prediction"] == tuple(PREDICTIONS)
    assert CHOICES["task.loss"] == tuple(LOSSES)


def first_losses(ranks: Distributed, overrides: list[str], folder: Path) -> dict[str, float]:
    """The first step's loss under each objective."""
    found = {}
    for name, settings in OBJECTIVES.items():
        _, rows = train(ranks, [*overrides, "checkpoint.every=1000", *settings], folder / name, 1)
        found[name] = rows[-1]["train/loss"]
    return found


@pytest.mark.slow
def test_every_objective_trains_on_something_else(tiny_diffusion: list[str], tmp_path: Path, on_ranks: OnRanks) -> None:
    losses = on_ranks(1, first_losses, tiny_diffusion, tmp_path)
    assert all(0 < loss < 100 for loss in losses.values()), losses
    assert len(set(losses.values())) == len(losses), losses


def drawn_noise(ranks: Distributed, overrides: list[str]) -> dict[str, torch.Tensor]:
    """Noise of samples 3 and 4, without and with an offset; that of 4 alone."""

    def task(*settings: str) -> DiffusionTask:
        built = build_task(composed([*overrides, "steps=1", "run.name=x", *settings]), ranks)
        assert isinstance(built, DiffusionTask)
        return built

    shape = torch.Size([4, 8, 8])
    plain, offset = task(), task("task.offset_noise=0.2")
    return {
        "plain": plain.draw_noise([3, 4], shape),
        "offset": offset.draw_noise([3, 4], shape),
        "alone": offset.draw_noise([4], shape),
    }


def test_offset_noise_is_one_number_a_channel_and_belongs_to_the_sample(
    tiny_diffusion: list[str], on_ranks: OnRanks
) -> None:
    noise = on_ranks(1, drawn_noise, tiny_diffusion)
    offset = noise["offset"] - noise["plain"]
    torch.testing.assert_close(offset, offset[..., :1, :1].expand_as(offset))
    assert len({round(value, 4) for value in offset[..., 0, 0].flatten().tolist()}) == 8
    assert 0.05 < offset.std() < 0.5
    assert torch.equal(noise["alone"], noise["offset"][1:])


def rows_of_three_steps(ranks: Distributed, overrides: list[str], folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of three steps."""
    _, rows = train(ranks, [*overrides, "checkpoint.every=1000", "task.snr_weight=null"], folder, 3)
    return rows[1:]


@pytest.mark.slow
def test_losses_by_timestep_are_the_same_on_one_rank_and_two(
    tiny_diffusion: list[str], tmp_path: Path, on_ranks: OnRanks
) -> None:
    one, two = (on_ranks(world, rows_of_three_steps, tiny_diffusion, tmp_path / f"{world}") for world in (1, 2))
    for row, other in zip(one, two, strict=True):
        deciles = {key: value for key, value in row.items() if key.startswith("train/loss_decile_")}
        assert 1 <= len(deciles) <= 8, "eight samples lie in no more than eight of the ten"
        assert deciles.keys() == {key for key in other if key.startswith("train/loss_decile_")}
        for key, value in deciles.items():
            assert abs(value - other[key]) < 1e-4 * value
        assert min(deciles.values()) <= row["train/loss"] <= max(deciles.values())
