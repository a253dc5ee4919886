"""From the composed configuration to live objects. Only here and in evaluation/run.py is anything instantiated."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from data.loader import Loader
from data.mixture import IndexedSource
from data.stream import Storage
from evaluation.frozen_conditioners import load_frozen_conditioners
from models.autoencoder import AutoencoderVQ
from models.latent_diffusion import FirstStage, LatentDiffusion
from models.noisy_classifier import NoisyClassifier
from models.objective import LOSSES, SnrWeight
from models.perceptual import PerceptualLoss
from models.prediction import PREDICTIONS
from training.checkpoint import Checkpoints
from training.checkpoint_store import CheckpointStore
from training.checkpoint_upload import Uploads
from training.codebook_revival import CodebookRevival
from training.components import build_optimizer
from training.data_sources import buckets_of, sources_of
from training.decay_groups import decay_groups
from training.distributed import Distributed
from training.engine import Engine
from training.loss_spikes import ROLL_BACK, SpikeGuard
from training.modules import ReconstructionModule, build_modules
from training.retention import Best, Retention
from training.schedule import LearningRate, Pace
from training.tasks import Task
from training.tasks.autoencoder import AutoencoderTask
from training.tasks.diffusion import DiffusionTask
from training.tasks.noisy_classifier import NoisyClassifierTask


def build_task(config: DictConfig, ranks: Distributed) -> Task:
    """The task with its engines, at step 0."""
    modules = {name: module.to(ranks.device) for name, module in build_modules(config).items()}
    judge = deepcopy(modules.get("discriminator"))  # before an engine has it, which puts hooks into it
    engines = {name: build_engine(config, module, ranks) for name, module in modules.items()}
    accumulation = steps_of_accumulation(config, ranks.world)
    names = [source.name for source in sources_of(config) if source.name]
    if config.task.name != "autoencoder":
        first_stage: FirstStage = instantiate(config.first_stage).to(ranks.device)
        schedule = instantiate(config.schedule)
    if config.task.name == "noisy_classifier":
        return NoisyClassifierTask(engines["model"], first_stage, schedule, accumulation, config.run.seed)
    if config.task.name == "diffusion":
        return DiffusionTask(
            engines["model"],
            first_stage,
            schedule,
            PREDICTIONS[config.task.prediction],
            LOSSES[config.task.loss],
            load_frozen_conditioners(config).to(ranks.device),
            {name: kind.nothing() for name, kind in instantiate(config.inputs).items()},
            dict(config.task.dropout),
            accumulation,
            SnrWeight(**config.task.snr_weight) if config.task.snr_weight else None,
            config.task.offset_noise,
            names,
            config.run.seed,
        )
    module = modules["model"]
    assert isinstance(module, ReconstructionModule) and judge is not None
    autoencoder = module.autoencoder
    weights = config.task.perceptual_weights
    perceptual = None if weights is None else PerceptualLoss(weights).to(ranks.device)
    size = config.data.image_size // autoencoder.downsampling
    return AutoencoderTask(
        engines["model"],
        engines["discriminator"],
        module,
        modules["discriminator"],
        judge,
        perceptual,
        (autoencoder.latent_channels, size, size),
        accumulation,
        config.task.reconstruction == "likelihood",
        config.task.regulariser_weight,
        config.task.adversary_weight,
        config.task.adversary_start,
        build_revival(config, engines["model"], module, ranks),
        names,
        config.run.seed,
    )


def build_revival(
    config: DictConfig, engine: Engine, module: ReconstructionModule, ranks: Distributed
) -> CodebookRevival | None:
    """What brings entries of a codebook back into use, if anything does; the settings were checked."""
    every = OmegaConf.select(config, "task.revive_codes_every")
    if every is None:
        return None
    assert isinstance(module.autoencoder, AutoencoderVQ)
    entries = module.autoencoder.codebook.entries.num_embeddings
    return CodebookRevival(engine, entries, every, config.batch.global_size, ranks, config.run.seed)


def build_engine(config: DictConfig, module: nn.Module, ranks: Distributed) -> Engine:
    """One module behind DeepSpeed with its optimizer."""
    optimizer = build_optimizer(config, decay_groups(module, config.optimizer.no_decay))
    accumulation = steps_of_accumulation(config, ranks.world)
    return Engine(
        module,
        instantiate(config.engine),
        optimizer,
        config.batch.micro_size,
        accumulation,
        ranks.world,
        build_guard(config),
    )


def build_guard(config: DictConfig) -> SpikeGuard | None:
    """What has updates left out, if anything does."""
    settings = config.loss_spike
    if settings.action is None:
        return None
    rolls_back = settings.action == ROLL_BACK
    return SpikeGuard(settings.loss, settings.gradient_norm, settings.window, settings.most_in_a_row, rolls_back)


def steps_of_accumulation(config: DictConfig, world: int) -> int:
    """Micro-batches a rank takes for one step; the settings were checked to divide evenly."""
    return config.batch.global_size // (config.batch.micro_size * world)


def build_loader(config: DictConfig, sources: Sequence[IndexedSource], storage: Storage, ranks: Distributed) -> Loader:
    """This rank's share of the training samples."""
    return Loader(
        sources,
        storage,
        seed=config.run.seed,
        image_size=config.data.image_size,
        inputs=instantiate(config.inputs),
        global_batch=config.batch.global_size,
        micro_batch=config.batch.micro_size,
        rank=ranks.rank,
        world=ranks.world,
        workers=config.data.workers,
        scaled_side=config.data.scaled_side,
        flip=config.data.flip,
        reducing_gap=config.data.reducing_gap,
        max_bad_share=config.data.max_bad_share,
        quarantine=Path(config.run.folder) / "bad_samples" / f"rank-{ranks.rank:05d}.jsonl",
        replace_bad_shards=config.data.bad_shards == "replace",
        latents=config.data.latents is not None,
        buckets=buckets_of(config),
    )


def build_checkpoints(config: DictConfig, ranks: Distributed) -> Checkpoints:
    """Those of the run, in its folder and, where they are uploaded, in a store."""
    settings = config.checkpoint
    best = None if settings.keep_best is None else Best(settings.keep_best.metric, settings.keep_best.mode)
    retention = Retention(settings.keep, settings.keep_every, best)
    uploads = None
    if settings.upload is not None:
        uploads = Uploads(CheckpointStore(settings.upload, instantiate(settings.storage)), ranks, retention)
    return Checkpoints(Path(config.run.folder) / "checkpoints", ranks, retention, uploads)


def build_pace(config: DictConfig) -> Pace:
    """How far the run goes, and by what steps."""
    schedule: LearningRate = instantiate(config.learning_rate)
    return Pace(config.steps, config.batch.global_size, schedule, config.checkpoint.every)


def build_prompts(config: DictConfig) -> dict[str, Tensor]:
    """The tokens int64 [L] of each of monitor.prompts."""
    if not config.monitor.prompts:  # a model may have no captions then
        return {}
    caption = instantiate(config.inputs.caption)
    return {prompt: caption.parse(prompt) for prompt in config.monitor.prompts}


def build_eval_model(config: DictConfig, ranks: Distributed) -> LatentDiffusion | NoisyClassifier:
    """A second model to hold EMA weights, so that looking at the model leaves the one in training alone."""
    return instantiate(config.model).to(ranks.device).eval().requires_grad_(False)
