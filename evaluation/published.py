"""A published (CompVis) file as a model that can draw."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from evaluation.errors import EvaluationError
from evaluation.frozen_conditioners import build_frozen_conditioners
from evaluation.generate import ImageModel
from evaluation.run import RAW, LoadedModel
from models.autoencoder import Autoencoder, IdentityAutoencoder
from models.conditioners import Conditioners
from models.conditioners.masked_image import MaskedImage
from models.interop import compvis
from models.latent_diffusion import FirstStage, LatentDiffusion
from models.prediction import PREDICTIONS
from models.schedule import NoiseSchedule
from training.checkpoint_files import AVERAGE
from training.compose import choices, composed

SAME_BETAS = 1e-6
"""Absolute; files have them in float32."""


def read_published(path: Path, experiment: str, weights: str, device: torch.device | str) -> LoadedModel:
    """The model of a published file, in float32 and evaluation mode.

    Args:
        path: `.ckpt` or `.safetensors`, as `models.interop.compvis.load` takes it.
        experiment: name of the experiment that says how the model is built and what it reads.
        weights: "ema", the moving average of the UNet's weights where the file has one, or "raw".
        device: where it is put.

    Raises EvaluationError for an unknown experiment, and ValueError when the file can't be read or holds another model
    than the experiment's.
    """
    if weights not in (AVERAGE, RAW):
        raise EvaluationError(f"weights={weights}: a published file has {AVERAGE} and {RAW} at most")
    config = experiment_config(experiment)
    checkpoint = compvis.load(path)
    model: LatentDiffusion = instantiate(config.model)
    autoencoder: Autoencoder | IdentityAutoencoder = instantiate(config.first_stage.autoencoder)
    frozen = build_frozen_conditioners(config)
    schedule: NoiseSchedule = instantiate(config.schedule)
    _check_schedule(schedule, checkpoint, experiment)
    averaged = weights == AVERAGE and bool(checkpoint.unet_ema)
    compvis.fill(model.unet, checkpoint.unet_ema if averaged else checkpoint.unet)
    if isinstance(autoencoder, Autoencoder):
        compvis.fill(autoencoder, checkpoint.first_stage)
    _fill_conditioners(model.conditioners, checkpoint)
    _fill_conditioners(frozen, checkpoint)
    scale = config.first_stage.scale if checkpoint.scale_factor is None else float(checkpoint.scale_factor)
    inputs = dict(instantiate(config.inputs))
    image_model = ImageModel(
        model.float().to(device).eval().requires_grad_(False),
        frozen.float().to(device).eval().requires_grad_(False),
        FirstStage(autoencoder, 1.0 if scale is None else scale).float().to(device),
        schedule,
        PREDICTIONS[config.task.prediction],
        {name: given.nothing() for name, given in inputs.items()},
    )
    origin = {"from": str(path), "like": experiment, "weights": AVERAGE if averaged else RAW}
    return LoadedModel(image_model, inputs, config.data.image_size, origin)


def experiment_config(name: str) -> DictConfig:
    """What an experiment file composes to. Raises EvaluationError when there is none, or none of diffusion."""
    if name not in choices("experiment"):
        raise EvaluationError(
            f"like={name}: there is no such experiment; choose one of {', '.join(choices('experiment'))}"
        )
    config = composed("train", [f"experiment={name}"])
    if config.task.name != "diffusion":
        raise EvaluationError(f"like={name}: its task is {config.task.name}; only a diffusion model draws pictures")
    return config


def _check_schedule(schedule: NoiseSchedule, checkpoint: compvis.Checkpoint, experiment: str) -> None:
    betas = checkpoint.schedule.get("betas")
    if betas is None:
        return
    same = betas.shape == schedule.betas.shape and torch.allclose(betas.double(), schedule.betas, 0.0, SAME_BETAS)
    if not same:
        theirs, ours = ((len(b), float(b[0]), float(b[-1])) for b in (betas, schedule.betas))
        raise ValueError(
            f"its {theirs[0]} betas go from {theirs[1]:.6f} to {theirs[2]:.6f}, and the {ours[0]} of "
            f"experiment={experiment} from {ours[1]:.6f} to {ours[2]:.6f}: they belong to different models"
        )


def _fill_conditioners(conditioners: Conditioners, checkpoint: compvis.Checkpoint) -> None:
    for conditioner in conditioners.by_input().values():
        if isinstance(conditioner, MaskedImage):  # encodes with the first stage itself
            compvis.fill(conditioner.autoencoder, checkpoint.first_stage)
        else:
            compvis.fill_conditioner(conditioner, checkpoint.conditioner)
