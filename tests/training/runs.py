"""Training inside a test's own process group: the real task, loader, loop and checkpoints, without the launcher."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from training.build import build_checkpoints, build_loader, build_pace, build_task
from training.compose import CONFIG_FOLDER
from training.dataset import training_sources
from training.distributed import Distributed
from training.fit import restore_or_begin
from training.instruments import build_instruments
from training.loop import fit
from training.preemption import StopRequest


class NoMonitor:
    """Looks at nothing."""

    def look(self, step: int) -> dict[str, float]:
        return {}


def composed(overrides: list[str]) -> DictConfig:
    """The configuration of `ldm train` with these overrides."""
    return copy.deepcopy(_composed(tuple(overrides)))


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def train(
    ranks: Distributed,
    overrides: list[str],
    folder: Path,
    until: int,
    goes_on_from: Callable[[int], None] = lambda step: None,
) -> tuple[Any, list[dict[str, float]]]:
    """Trains from the newest checkpoint in `folder`, whose step `goes_on_from` is told, to step `until`; returns the
    task and metrics.jsonl's rows."""
    config = composed(["checkpoint.keep=5", *overrides, "tracker.mode=disabled"])
    config.run.folder, config.steps = str(folder), until
    if ranks.is_main:
        folder.mkdir(parents=True, exist_ok=True)
    ranks.barrier()
    storage = instantiate(config.data.storage)
    loader = build_loader(config, training_sources(config, storage), storage, ranks)
    task = build_task(config, ranks)
    checkpoints = build_checkpoints(config, ranks)
    state = restore_or_begin(config, task, loader, checkpoints, ranks)
    goes_on_from(state.step)
    instruments = build_instruments(config, task.engines, ranks, 0, state.step, loader.whereabouts)
    with contextlib.closing(loader.batches(state.batch)) as batches:
        fit(
            task,
            batches,
            loader.account,
            state,
            build_pace(config),
            checkpoints,
            NoMonitor(),
            instruments,
            ranks,
            StopRequest(),
        )
    instruments.tracker.close(failed=False)
    ranks.barrier()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return task, rows
