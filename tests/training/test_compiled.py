"""torch.compile changes how fast a step is, and nothing that a checkpoint holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.conftest import OnRanks
from tests.training.runs import train
from training.checkpoint_files import Reader
from training.distributed import Distributed

COMPILED = ["engine.compile=default"]


def as_it_is_and_compiled(ranks: Distributed, overrides: list[str], folder: Path) -> dict[str, torch.Tensor]:
    """Losses of 20 steps as the module is and compiled, and of each whose last ten were run the other way. [4, 20]"""
    found = []
    for name, first, second in (
        ("as it is", [], []),
        ("compiled", COMPILED, COMPILED),
        ("compiled later", [], COMPILED),
        ("compiled before", COMPILED, []),
    ):
        for settings, until in ((first, 10), (second, 20)):
            _, rows = train(ranks, [*overrides, *settings, "checkpoint.every=10"], folder / name, until)
        found.append([row["train/loss"] for row in rows if row["step"]])
    names = [
        set(Reader(folder / name / "checkpoints" / "step-00000010").manifest.engines["model"].parameters)
        for name in ("as it is", "compiled")
    ]
    assert names[0] == names[1]
    return {"losses": torch.tensor(found, dtype=torch.float64)}


@pytest.mark.slow
def test_losses_and_checkpoints_are_those_of_the_module_as_it_is(
    tiny_diffusion: list[str], tmp_path: Path, on_ranks: OnRanks
) -> None:
    reference, *others = on_ranks(1, as_it_is_and_compiled, tiny_diffusion, tmp_path)["losses"]
    assert len(reference) == 20
    for losses in others:
        assert ((losses - reference) / reference).abs().max() < 1e-4
        assert not torch.equal(losses, reference), "nothing was compiled"
