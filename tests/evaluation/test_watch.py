"""Which checkpoints of a run that trains are measured, and when watching ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from evaluation.errors import EvaluationError
from evaluation.evaluate import build_protocol
from evaluation.results import Result, write_result
from evaluation.watch import watch
from training import compose
from training.checkpoint_files import MANIFEST, Manifest, folder_name
from training.distributed import Distributed

ALONE = Distributed(0, 1, 0, torch.device("cpu"))


def save(run: Path, step: int) -> Path:
    """A checkpoint of that step, as far as one looks before its weights are read."""
    place = run / "checkpoints" / folder_name(step)
    place.mkdir(parents=True)
    (place / MANIFEST).write_text(Manifest(step, 8 * step, 1, {}, {}).to_json())
    return place


@pytest.fixture
def run(tmp_path: Path) -> Path:
    OmegaConf.save({"task": {"name": "diffusion"}, "steps": 6}, tmp_path / "config.yaml")
    return tmp_path


def settings(run: Path, *overrides: str) -> DictConfig:
    return compose.composed("evaluate", [f"run={run}", "watch=true", "watch_every_seconds=0.01", *overrides])


def test_every_newest_checkpoint_is_measured_up_to_the_last_step(run: Path) -> None:
    seen: list[int] = []

    def measure(checkpoint: Path) -> None:
        """Takes so long that two more come meanwhile, of which the newer one counts."""
        seen.append(int(checkpoint.name.removeprefix("step-")))
        if seen == [2]:
            save(run, 3), save(run, 4)
        elif seen == [2, 4]:
            save(run, 6)

    save(run, 2)
    config = settings(run)
    watch(config, build_protocol(config), ALONE, measure)
    assert seen == [2, 4, 6]


def test_what_has_a_result_already_is_left_alone(run: Path) -> None:
    save(run, 6)
    config = settings(run)
    protocol = build_protocol(config)
    write_result(run, Result(6, "ema", protocol.card(), protocol.hash, {}, 1.0, []))
    watch(config, protocol, ALONE, lambda checkpoint: pytest.fail("measured again"))
    other = settings(run, "protocol.guidance_scale=2.5")
    seen: list[Path] = []
    watch(other, build_protocol(other), ALONE, seen.append)
    assert len(seen) == 1


def test_patience_ends(run: Path) -> None:
    save(run, 2)
    config = settings(run, "watch_patience_hours=0.00001")
    with pytest.raises(EvaluationError, match=r"watch_patience_hours=1e-05; the newest is .*step-00000002"):
        watch(config, build_protocol(config), ALONE, lambda checkpoint: None)
