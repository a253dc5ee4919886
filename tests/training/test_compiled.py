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
    """Losses of 20 steps as the module is, and of each whose first or last ten were compiled. [3, 20]"""
    found, names = [], []
    for name, first, second in (("as it is", [], []), ("before", COMPILED, []), ("later", [], COMPILED)):
        for settings, until in ((first, 10), (second, 20)):
            _, rows = train(ranks, [*overrides, *settings, "checkpoint.every=10"], folder / name, until)
        found.append([row["train/loss"] for row in rows if row["step"]])
        manifest = Reader(folder / name / "checkpoints" / "step-00000010").manifest
        names.append(manifest.engines["model"].parameters.keys())
    assert names[1] == names[0]
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
