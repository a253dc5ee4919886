"""Training inside a test's own process group: the real task, loader, loop and checkpoints, without the launcher."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from training.alerts import Alerts
from training.build import build_loader, build_task
from training.checkpoint import Checkpoints
from training.compose import CONFIG_FOLDER
from training.dataset import training_sources
from training.distributed import Distributed
from training.fit import estimate_latent_scale
from training.goodput import GoodputMeter
from training.loop import TrainState, fit
from training.meter import Meter
from training.preemption import StopRequest
from training.retention import Retention
from training.tasks.latents import LatentTask
from training.tracker import Tracker
from training.utilisation import ideal_step_seconds
from training.watchdog import Watchdog


class NoMonitor:
    """Looks at nothing."""

    def look(self, step: int) -> dict[str, float]:
        return {}


def composed(overrides: list[str]) -> DictConfig:
    """The configuration of `ldm train` with these overrides."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("train", overrides=overrides)


def train(ranks: Distributed, overrides: list[str], folder: Path, until: int) -> tuple[Any, list[dict[str, float]]]:
    """Trains from the newest checkpoint in `folder` to step `until`; returns the task and metrics.jsonl's rows."""
    config = composed([*overrides, f"run.folder={folder}", f"steps={until}"])
    if ranks.is_main:
        folder.mkdir(parents=True, exist_ok=True)
    ranks.barrier()
    storage = instantiate(config.data.storage)
    loader = build_loader(config, training_sources(config, storage), storage, ranks)
    task = build_task(config, ranks)
    checkpoints = Checkpoints(folder / "checkpoints", ranks, Retention(keep=5))
    manifest = checkpoints.restore_newest(task.engines)
    state = TrainState()
    if manifest is not None:
        state = TrainState(manifest.step, manifest.images_seen, Counter(manifest.extra["bad_samples"]))
        task.load_extra_state(manifest.extra)
    elif isinstance(task, LatentTask) and config.first_stage.scale is None:
        estimate_latent_scale(task, loader)
    meter = Meter(task.engines, ranks.device, config.tracker.detail_every, ideal_step_seconds(config, ranks.world))
    tracker = Tracker(folder, ranks.is_main, {}, "test", "disabled", "step", False, state.step)
    alerts = Alerts(instantiate(config.alerts), tracker, ["here"] * ranks.world, ranks.is_main)
    with contextlib.closing(loader.batches(state.step)) as batches:
        fit(
            task,
            batches,
            loader.account,
            state,
            until,
            config.batch.global_size,
            instantiate(config.learning_rate),
            config.checkpoint.every,
            checkpoints,
            NoMonitor(),
            meter,
            alerts,
            tracker,
            ranks,
            StopRequest(),
            Watchdog(None, folder, 0, ranks.rank, ranks.world, loader.whereabouts),
            GoodputMeter(folder, ranks.is_main),
        )
    tracker.close(failed=False)
    ranks.barrier()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return task, rows
