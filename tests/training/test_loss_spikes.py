"""Updates by a spike are left out: whole, on every rank, and again by a run that is resumed."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from data.batch import Batch
from tests.training.conftest import OnRanks
from tests.training.runs import composed, train
from tests.training.test_laws import on_one_and_two
from training.checkpoint_files import Reader
from training.distributed import Distributed
from training.engine import Engine
from training.engine_settings import EngineSettings
from training.fit import train_and_report
from training.loss_spikes import LossSpikes, SpikeGuard
from training.optimizers.adamw import AdamW
from training.tasks.diffusion import DiffusionTask

ORIGINAL = DiffusionTask.losses
SKIP = ["loss_spike.action=skip", "loss_spike.window=2"]


def test_an_update_is_judged_by_the_median_of_those_made_before() -> None:
    guard = SpikeGuard(3.0, None, window=3, most_in_a_row=9)
    assert [guard.judge(loss, 1.0) for loss in (1.0, 50.0, 2.0, 6.0)] == [None] * 4, "the median of 1, 2, 50 is 2"
    said = guard.judge(18.1, 1.0)
    assert said == "its loss is 18.1, 3.0 times the median of the 3 updates before"
    assert guard.judge(18.0, 1.0) is None, "what was left out doesn't count"
    assert guard.left_out == 1


def test_either_limit_is_enough_and_none_is_none() -> None:
    guard = SpikeGuard(None, 2.0, window=1, most_in_a_row=9)
    assert guard.judge(1.0, 1.0) is None
    assert "gradient norm is 2.1" in str(guard.judge(1.0, 2.1))
    assert guard.judge(100.0, 1.9) is None


def test_too_many_in_a_row_are_an_error() -> None:
    guard = SpikeGuard(2.0, None, window=1, most_in_a_row=2)
    for loss in (1.0, 3.0, 3.0, 1.0, 3.0, 3.0):
        guard.judge(loss, 1.0)
        guard.check()
    guard.judge(3.0, 1.0)
    with pytest.raises(LossSpikes, match=r"loss_spike\.most_in_a_row=2: 3 updates in a row"):
        guard.check()


def test_too_many_returns_to_one_checkpoint_are_an_error() -> None:
    guard = SpikeGuard(2.0, None, window=1, most_in_a_row=2, rolls_back=True)
    guard.check(roll_backs=2)
    with pytest.raises(LossSpikes, match="went back to the same checkpoint 3 times"):
        guard.check(roll_backs=3)


def test_a_guard_that_is_restored_judges_on() -> None:
    losses = [1.0, 2.0, 3.0, 30.0, 4.0, 30.0, 9.0]
    straight, before, after = (SpikeGuard(3.0, 5.0, window=3, most_in_a_row=9) for _ in range(3))
    wanted = [straight.judge(loss, loss) for loss in losses]
    found = [before.judge(loss, loss) for loss in losses[:4]]
    after.load_state(before.state())
    assert found + [after.judge(loss, loss) for loss in losses[4:]] == wanted
    assert after.state() == straight.state() and after.left_out == 2


def held(engine: Engine) -> torch.Tensor:
    """All that this rank holds, in one tensor."""
    return torch.cat([fragment.tensors[kind] for fragment in engine.fragments() for kind in engine.kinds])


def update(engine: Engine, inputs: torch.Tensor, factor: float) -> None:
    """One update of two micro-batches, of which the first of the last rank has a loss so much larger."""
    for micro_batch in (0, 1):
        last = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1
        loss = engine(inputs[micro_batch]).square().mean()
        engine.backward(loss * factor if last and not micro_batch else loss)
        engine.step(1e-2)


def spikes(ranks: Distributed, precision: str, stages: tuple[int, ...]) -> dict[str, list[Any]]:
    """By stage and limit: why the third of four updates was left out, on all ranks; whether it changed anything, and
    whether the fourth is as if it had never been."""
    found = {}
    for stage in stages:
        for limits in ((3.0, None), (None, 3.0)):
            results = {}
            for with_spike in (True, False):
                torch.manual_seed(0)
                module = nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 1))
                settings = EngineSettings(zero_stage=stage, precision=precision)
                guard = SpikeGuard(*limits, window=2, most_in_a_row=9)
                # Two groups of parameters, as the optimizer steps these apart.
                groups: list[Any] = [
                    {"params": [p for p in module.parameters() if p.dim() == dim], "weight_decay": 0.1 * dim}
                    for dim in (1, 2)
                ]
                engine = Engine(module, settings, AdamW(groups, 1e-2), 1, 2, ranks.world, guard)
                inputs = torch.ones(2, 1, 3, dtype=engine.dtype) * (ranks.rank + 1)
                update(engine, inputs, 1.0)
                update(engine, inputs, 1.0)
                before = held(engine)
                if with_spike:
                    update(engine, inputs, 1000.0)
                    results["said"] = (engine.left_out or "").split(" is ")[0]
                    results["same"] = torch.equal(held(engine), before)
                update(engine, inputs, 1.0)
                results[str(with_spike)] = held(engine)
                results["updates"] = engine.updates
            again = torch.equal(results["True"], results["False"])
            everyone = ranks.gather_objects([results["said"], results["same"], again, results["updates"]])
            found[f"{precision} zero{stage} {limits}"] = everyone
    return found


@pytest.mark.parametrize(
    ("world", "precision", "stages"),
    [
        (2, "fp32", (0, 3)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((2, "fp32", (1, 2)), (2, "bf16", (1, 2, 3)), (1, "fp32", (0, 1, 2, 3)))
        ),
    ],
)
def test_what_is_left_out_changes_no_bit_on_any_rank(
    world: int, precision: str, stages: tuple[int, ...], on_ranks: OnRanks
) -> None:
    found = on_ranks(world, spikes, precision, stages)
    assert len(found) == 2 * len(stages)
    for key, everyone in found.items():
        name = "its loss" if "(3.0, None)" in key else "its gradient norm"
        assert everyone == [[name, True, True, 3]] * world, key


def spiked(losses: Any, culprits: list[int], task: DiffusionTask, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """`DiffusionTask.losses`, of which those of some samples are a thousand times as large."""
    found, t = losses(task, batch)
    return torch.where(torch.isin(batch.numbers, torch.tensor(culprits)), found * 1000, found), t


def saved(folder: Path) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]]:
    """Of the checkpoint of step 6: updates made, the weights and their optimizer state by kind, and what is beside."""
    reader = Reader(folder / "checkpoints" / "step-00000006")
    engine, kinds = reader.manifest.engines["model"], reader.manifest.kinds
    state = {kind: torch.cat([reader.tensor("model", kind, n).view(-1) for n in engine.parameters]) for kind in kinds}
    return engine.updates, state, reader.manifest.extra


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for kind, values in one.items():
        assert torch.equal(values, other[kind]), kind


def runs(ranks: Distributed, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Six steps with spikes in the steps 3 and 4, whose samples are 24 to 31 and 32 to 39, straight and interrupted;
    and six steps without a spike, guarded and not."""
    overrides = [*overrides, "batch.micro_size=2", "checkpoint.every=1"]
    patched = functools.partialmethod(functools.partial(spiked, DiffusionTask.losses, [25, 38]))
    with mock.patch.object(DiffusionTask, "losses", patched):
        _, straight = train(ranks, [*overrides, *SKIP], folder / "straight", 6)
        train(ranks, [*overrides, *SKIP], folder / "interrupted", 4)
        _, interrupted = train(ranks, [*overrides, *SKIP], folder / "interrupted", 6)
    _, guarded = train(
        ranks, [*overrides, *SKIP, "loss_spike.loss=1000", "loss_spike.gradient_norm=1000"], folder / "guarded", 6
    )
    _, free = train(ranks, overrides, folder / "free", 6)
    found: dict[str, Any] = {
        "skipped": [row["train/skipped_updates"] for row in straight if row["step"]],
        "skipped after a restart": [row["train/skipped_updates"] for row in interrupted if row["step"]],
        "skipped without": [row["train/skipped_updates"] for row in guarded if row["step"]],
        "losses": [row["train/loss"] for row in straight if row["step"]],
        "losses guarded": [row["train/loss"] for row in guarded if row["step"]],
        "losses free": [row["train/loss"] for row in free if row["step"]],
        "skipping is no setting of a free run": "train/skipped_updates" not in free[-1],
    }
    for run in ("straight", "interrupted", "guarded", "free"):
        found[f"{run} updates"], found[f"{run} state"], _ = saved(folder / run)
    return found


@pytest.mark.slow
def test_a_run_leaves_out_spikes_on_any_number_of_ranks_and_after_a_restart(
    tiny_diffusion: list[str], tmp_path: Path, on_ranks: OnRanks
) -> None:
    both = on_one_and_two(on_ranks, runs, [tiny_diffusion], tmp_path)
    for found in both.values():
        assert found["skipped"] == found["skipped after a restart"] == [0, 0, 0, 1, 2, 2]
        assert found["straight updates"] == found["interrupted updates"] == 4
        assert found["skipped without"] == [0] * 6 and found["guarded updates"] == 6
        assert found["skipping is no setting of a free run"]
        assert found["losses guarded"] == found["losses free"]
        assert_same(found["straight state"], found["interrupted state"])
        assert_same(found["guarded state"], found["free state"])
    torch.testing.assert_close(both[1]["losses"], both[2]["losses"], rtol=1e-4, atol=0)


def rolled_back(ranks: Distributed, overrides: list[str], folder: Path) -> dict[str, Any]:
    """A run to step 6 with a spike in the batch 3, whose samples are 24 to 31; straight, and started thrice."""
    settings = ["batch.micro_size=2", "checkpoint.every=2", "loss_spike.action=roll_back", "loss_spike.window=2"]
    seen: list[int] = []

    def losses(task: DiffusionTask, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        seen.extend(batch.numbers.tolist())
        return spiked(ORIGINAL, [25], task, batch)

    found: dict[str, Any] = {}
    for name, ends in (("straight", [6]), ("interrupted", [2, 4, 6])):
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        with mock.patch.object(DiffusionTask, "losses", losses):
            for end in ends:
                config = composed(
                    [
                        *overrides,
                        *settings,
                        "run.name=test",
                        f"run.folder={place}",
                        f"steps={end}",
                        "monitor.every=1000",
                    ]
                )
                assert train_and_report(config, ranks)
        rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        updates, state, extra = saved(place)
        found[name] = {
            "samples": list(seen),
            "steps": [row["step"] for row in rows],
            "losses": [row["train/loss"] for row in rows[1:]],
            "counted": [(row.get("train/roll_backs", 0), row.get("train/batches_left_out", 0)) for row in rows],
            "updates": updates,
            "extra": (extra["batches_left_out"], extra["roll_backs"]),
            "state": state,
        }
        seen.clear()
    return found


@pytest.mark.slow
def test_a_run_goes_back_before_a_spike_and_on_with_the_samples_after_it(
    tiny_diffusion: list[str], tmp_path: Path, on_ranks: OnRanks
) -> None:
    both = on_one_and_two(on_ranks, rolled_back, [tiny_diffusion], tmp_path)
    for found in both.values():
        straight, interrupted = found["straight"], found["interrupted"]
        assert straight["steps"] == interrupted["steps"] == [0, 1, 2, 3, 4, 5, 6]
        assert straight["counted"] == interrupted["counted"] == [(0, 0)] * 3 + [(1, 2)] * 4
        assert straight["extra"] == interrupted["extra"] == (2, 1)
        assert straight["updates"] == interrupted["updates"] == 6
        assert straight["losses"] == interrupted["losses"]
        assert_same(straight["state"], interrupted["state"])
    assert both[1]["straight"]["samples"] == list(range(8 * 8)), "the steps 2 and 3 once more, on the batches 4 and 5"
    torch.testing.assert_close(both[1]["straight"]["losses"], both[2]["straight"]["losses"], rtol=1e-4, atol=0)
