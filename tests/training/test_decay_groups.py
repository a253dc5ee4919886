"""Weight decay spares what it is told to, and nothing else, however the state is sharded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training.conftest import OnRanks
from training.checkpoint import Checkpoints
from training.decay_groups import decay_groups, spared
from training.distributed import Distributed
from training.engine import Engine
from training.engine_settings import EngineSettings
from training.optimizers.adamw import AdamW

ALL = ["bias", "norm", "embedding"]
DECAY = 0.5


class Module(nn.Module):
    """One of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 6)
        self.layers = nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.SiLU(), nn.Linear(7, 3, bias=False))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.layers(self.words(numbers))


@pytest.mark.parametrize(
    ("no_decay", "names"),
    [
        ([], []),
        (["bias"], ["layers.0.bias", "layers.1.bias"]),
        (["norm"], ["layers.1.weight", "layers.1.bias"]),
        (["embedding"], ["words.weight"]),
        (["layers.3.*"], ["layers.3.weight"]),
        (
            [*ALL, "*.3.weight"],
            ["words.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "layers.3.weight"],
        ),
    ],
)
def test_what_is_spared(no_decay: list[str], names: list[str]) -> None:
    assert spared(Module(), no_decay) == set(names)


def test_where_all_decay_there_are_no_groups() -> None:
    module = Module()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for no_decay in (None, [], ["nothing.*"]):
        assert all(a is b for a, b in zip(decay_groups(module, no_decay), parameters, strict=True))


def build(stage: int, world: int, no_decay: list[str] | None, seed: int = 0) -> Engine:
    torch.manual_seed(seed)
    module = Module()
    optimizer = AdamW(decay_groups(module, no_decay), 1e-2, weight_decay=DECAY)
    return Engine(module, EngineSettings(zero_stage=stage, clip_norm=0.0), optimizer, 8 // world, 1, world)


def train(engine: Engine, ranks: Distributed, first: int, last: int) -> None:
    share = slice(ranks.rank * 8 // ranks.world, (ranks.rank + 1) * 8 // ranks.world)
    for step in range(first, last):
        numbers = torch.Generator().manual_seed(step)
        x, y = torch.randint(5, (8,), generator=numbers)[share], torch.randn(8, 3, generator=numbers)[share]
        engine.backward((engine(x) - y).square().mean())
        engine.step(1e-2)


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: whole.clone() for name, whole in engine.gather("param")}


def update_ratio(engine: Engine, ranks: Distributed) -> torch.Tensor:
    change, size = ranks.all_reduce_sum(engine.update_squares())
    return (change / size).sqrt()


def at_stages(ranks: Distributed, stages: tuple[int, ...], folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Weights after four steps with groups at these stages; after two of them where all decay, restored with groups at
    another stage, and two more; and the ratio that the last update is said to have had, with the true one."""
    found = {}
    for stage in stages:
        engine = build(stage, ranks.world, ALL)
        train(engine, ranks, 0, 3)
        before = weights(engine)
        train(engine, ranks, 3, 4)
        found[f"straight {stage}"] = after = weights(engine)
        change = sum(((after[n] - before[n]).square().sum() for n in after), torch.zeros(()))
        size = sum((after[n].square().sum() for n in after), torch.zeros(()))
        found[f"ratio {stage}"] = {"told": update_ratio(engine, ranks), "true": (change / size).sqrt()}
        first = build(stage, ranks.world, None)
        train(first, ranks, 0, 2)
        checkpoints = Checkpoints(folder / f"{ranks.world}-{stage}", ranks)
        checkpoints.save({"model": first}, 2, 16, {})
        checkpoints.finish()
        second = build((stage + 1) % 4, ranks.world, ALL, seed=1)
        checkpoints.restore_newest({"model": second})
        train(second, ranks, 2, 4)
        found[f"restored {stage}"] = weights(second)
    return found


def reference(groups_from: int) -> dict[str, torch.Tensor]:
    """The same with torch's own optimizer on the whole batch, where all decay before the step `groups_from`."""
    torch.manual_seed(0)
    module = Module()
    names = spared(module, ALL)
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW([{"params": [p], "name": n} for n, p in trained.items()], 1e-2, weight_decay=DECAY)
    for step in range(4):
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0 if step >= groups_from and group["name"] in names else DECAY
        numbers = torch.Generator().manual_seed(step)
        x, y = torch.randint(5, (8,), generator=numbers), torch.randn(8, 3, generator=numbers)
        optimizer.zero_grad()
        (module(x) - y).square().mean().backward()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in trained.items()}


@pytest.mark.parametrize(
    ("world", "stages"), [(2, (2,)), *(pytest.param(world, (0, 1, 3), marks=pytest.mark.slow) for world in (1, 2))]
)
def test_spared_parameters_don_t_decay_at_any_stage_nor_after_another_setting(
    world: int, stages: tuple[int, ...], tmp_path: Path, on_ranks: OnRanks
) -> None:
    straight, restored = reference(0), reference(2)
    assert not torch.allclose(straight["words.weight"], restored["words.weight"], atol=1e-3)
    for key, values in on_ranks(world, at_stages, stages, tmp_path).items():
        if key.startswith("ratio"):
            torch.testing.assert_close(values["told"], values["true"], rtol=1e-3, atol=0, msg=key)
            continue
        wanted = straight if key.startswith("straight") else restored
        for name, value in values.items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-6, msg=f"{key} {name}")
