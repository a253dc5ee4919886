"""One rank's whole job: restore, train, measure, report."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from data.batch import Batch
from data.loader import Loader
from data.stream import Storage
from evaluation.first_stage import save_first_stage
from evaluation.goodput import account, in_words
from evaluation.protocol import Protocol
from evaluation.report import write_report
from evaluation.weights import WeightsError
from models.latent_diffusion import LatentDiffusion
from models.noisy_classifier import NoisyClassifier
from training.build import build_checkpoints, build_eval_model, build_loader, build_pace, build_prompts, build_task
from training.checkpoint import Checkpoints
from training.classifier_monitor import NoisyClassifierMonitor
from training.compose import CONFIG_FOLDER
from training.dataset import held_out_samples, note_data, training_sources
from training.distributed import Distributed
from training.instruments import build_instruments
from training.look import Monitor
from training.loop import fit
from training.loss_spikes import RollBack
from training.monitors import AutoencoderMonitor, DiffusionMonitor
from training.non_finite import NonFiniteStep
from training.preemption import StopRequest
from training.replay_file import leave_replay
from training.starts import START_VARIABLE, note_training
from training.tasks import Task
from training.tasks.autoencoder import AutoencoderTask
from training.tasks.diffusion import DiffusionTask
from training.tasks.latents import LatentTask
from training.tasks.noisy_classifier import NoisyClassifierTask
from training.tracker import Tracker
from training.train_state import TrainState

log = logging.getLogger(__name__)


def train_and_report(config: DictConfig, ranks: Distributed) -> bool:
    """Trains the configured task from its newest checkpoint to its last step and writes the report.

    Returns False when it was asked to stop before the last step; a checkpoint of the step it came to is there then.
    """
    stop = StopRequest()
    folder = Path(config.run.folder)
    storage: Storage = instantiate(config.data.storage)
    sources = training_sources(config, storage)
    loader = build_loader(config, sources, storage, ranks)
    held_out = held_out_samples(config, storage)
    task = build_task(config, ranks)
    checkpoints = build_checkpoints(config, ranks)
    state = restore_or_begin(config, task, loader, checkpoints, ranks)
    checkpoints.make_room(task.engines)
    start = int(os.environ.get(START_VARIABLE, 0))
    if ranks.is_main:
        if start:
            note_training(folder, start, state.step)
        write_config(config, folder)
        note_data(sources, config, resumed=state.step > 0)
    while True:
        try:
            finished = _train_on(config, ranks, task, loader, held_out, checkpoints, state, start, stop)
            break
        except RollBack:
            state = _before_spike(task, checkpoints, state, ranks)
    if ranks.is_main:
        log.info("%s", in_words(account(folder)))
        log.info("report: %s", write_report(folder))
    return finished


def _train_on(
    config: DictConfig,
    ranks: Distributed,
    task: Task,
    loader: Loader,
    held_out: Batch,
    checkpoints: Checkpoints,
    state: TrainState,
    start: int,
    stop: StopRequest,
) -> bool:
    """Trains from `state` on, watched by instruments; False when it was asked to stop. Raises RollBack."""
    folder = Path(config.run.folder)
    left_out = state.batches_left_out
    instruments = build_instruments(
        config, task.engines, ranks, start, state.step, lambda step: loader.whereabouts(step + left_out)
    )
    failed = True
    try:
        monitor = build_monitor(folder, config, task, held_out, ranks, instruments.tracker)
        with contextlib.closing(loader.batches(state.batch)) as batches, instruments.watchdog:
            finished = fit(
                task,
                batches,
                loader.account,
                state,
                build_pace(config),
                checkpoints,
                monitor,
                instruments,
                ranks,
                stop,
            )
        if ranks.is_main and state.bad_samples:
            counts = ", ".join(f"{count} {reason}" for reason, count in sorted(state.bad_samples.items()))
            log.warning("bad samples replaced so far: %s", counts)
        if told := instruments.alerts.summary():
            log.warning("alerts since the start: %s", told)
        if finished:
            finish(monitor, folder, state.step, ranks)
        failed = False
    except NonFiniteStep as failure:
        raise leave_replay(folder, config, task, state, failure, ranks) from None
    except RollBack:
        failed = False
        raise
    finally:
        instruments.tracker.close(failed)
    return finished


def _before_spike(task: Task, checkpoints: Checkpoints, spike: TrainState, ranks: Distributed) -> TrainState:
    """The newest checkpoint's state, which the engines get, to go on from with the samples after those of `spike`.

    A collective. Raises LossSpikes where it was gone back to too often.
    """
    manifest = checkpoints.restore_newest(task.engines)
    guard = task.engines["model"].guard
    assert manifest is not None and guard is not None
    state = TrainState.of(manifest, task)
    guard.check(spike.roll_backs + 1 - state.roll_backs)
    state.roll_backs = spike.roll_backs + 1
    state.batches_left_out = spike.batch + 1 - state.step
    if ranks.is_main:
        log.warning(
            "back from step %d to step %d, and on with batch %d; left out so far: %d",
            *(spike.step, state.step, state.batch, state.batches_left_out),
        )
    return state


def restore_or_begin(
    config: DictConfig, task: Task, loader: Loader, checkpoints: Checkpoints, ranks: Distributed
) -> TrainState:
    """The state of the newest checkpoint, which the task's engines get; or that of step 0. A collective."""
    manifest = checkpoints.restore_newest(task.engines)
    if manifest is None:
        if isinstance(task, LatentTask) and config.first_stage.scale is None:
            estimate_latent_scale(task, loader)
        return TrainState()
    if ranks.is_main:
        log.info("going on from step %d of %d", manifest.step, config.steps)
    return TrainState.of(manifest, task)


def build_monitor(
    folder: Path, config: DictConfig, task: object, held_out: Batch, ranks: Distributed, tracker: Tracker
) -> AutoencoderMonitor | DiffusionMonitor | NoisyClassifierMonitor:
    """The monitor of the task."""
    if isinstance(task, AutoencoderTask):
        autoencoder = instantiate(config.model).to(ranks.device).eval().requires_grad_(False)
        return AutoencoderMonitor(folder, config, task, autoencoder, held_out, ranks, tracker)
    model = build_eval_model(config, ranks)
    if isinstance(task, NoisyClassifierTask):
        assert isinstance(model, NoisyClassifier)
        return NoisyClassifierMonitor(task, model, held_out, config.monitor.every, config.steps, ranks)
    assert isinstance(task, DiffusionTask) and isinstance(model, LatentDiffusion)
    protocol: Protocol | None = None
    if config.monitor.protocol is not None:
        protocol = Protocol.of(dict(OmegaConf.load(CONFIG_FOLDER / "protocol" / f"{config.monitor.protocol}.yaml")))
    sampler = instantiate(config.monitor.sampler)
    prompts = build_prompts(config)
    return DiffusionMonitor(folder, config, task, model, held_out, ranks, tracker, protocol, sampler, prompts)


def finish(monitor: Monitor, folder: Path, step: int, ranks: Distributed) -> None:
    """What a finished run leaves: the gallery of a diffusion model, the weights of a first stage."""
    if isinstance(monitor, DiffusionMonitor):
        monitor.finish(step)
    if isinstance(monitor, AutoencoderMonitor):
        monitor.load_ema()
        if ranks.is_main:
            path = folder / "first_stage.safetensors"
            save_first_stage(monitor.model.state_dict(), path)
            log.info("first stage: %s", path)


@torch.no_grad()
def estimate_latent_scale(task: LatentTask, loader: Loader) -> None:
    """Sets the latent scale to 1 / standard deviation of the first batch's latents (LDM App. G).

    Every rank sees the whole first batch, so the number is the same for any number of ranks.
    """
    whole = loader.step(0)
    task.first_stage.scale.fill_(1.0)
    numbers = whole.numbers.tolist()
    if whole.moments is not None:
        latents = task.latents(task.moments(whole), numbers)
    else:  # one by one, as a step's images of all ranks may not fit at once
        moments = (task.first_stage.moments(image.to(task.engine.device)) for image in whole.images.split(1))
        latents = torch.cat([task.latents(m, [number]).cpu() for m, number in zip(moments, numbers, strict=True)])
    deviation = latents.std().item()
    if not 0 < deviation < math.inf:
        raise WeightsError(f"first_stage.weights: latents of samples {numbers} deviate by {deviation}; check the file")
    task.first_stage.scale.fill_(1.0 / deviation)
    log.info("latent scale: %.5f", task.first_stage.scale.item())


def write_config(config: DictConfig, folder: Path) -> None:
    """Keeps the composed configuration with the run, with the time that it was last started."""
    text = f"# started {time.strftime('%Y-%m-%d %H:%M:%S')}\n" + OmegaConf.to_yaml(config, resolve=True)
    partial = folder / "config.yaml.partial"
    partial.write_text(text)
    partial.replace(folder / "config.yaml")
