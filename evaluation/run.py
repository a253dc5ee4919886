"""A run folder as a model that can draw."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from data.inputs import Input
from data.inputs.label import LABEL, Label
from evaluation.errors import EvaluationError
from evaluation.frozen_conditioners import load_frozen_conditioners
from evaluation.generate import ImageModel
from evaluation.weights import WeightsError, not_finite
from models.latent_diffusion import FirstStage, LatentDiffusion
from models.noisy_classifier import NoisyClassifier
from models.prediction import PREDICTIONS
from models.schedule import NoiseSchedule
from training.checkpoint_files import (
    AVERAGE,
    BASE_KINDS,
    MANIFEST,
    CheckpointError,
    Manifest,
    load_manifest,
    newest_complete,
    read_weights,
)

ENGINE = "model"
RAW = "raw"
"""What users call the weights of the last step, "param" in a checkpoint."""


@dataclass(frozen=True)
class LoadedModel:
    """What sampling needs.

    inputs: what the model's conditioners read, by name. image_size: side of its images in pixels. origin: where it is
    from, for those who look at its pictures.
    """

    image_model: ImageModel
    inputs: dict[str, Input]
    image_size: int
    origin: dict[str, Any]


@dataclass(frozen=True)
class LoadedRun(LoadedModel):
    """One that was trained here, with its configuration and its checkpoint's manifest."""

    config: DictConfig
    manifest: Manifest

    @property
    def step(self) -> int:
        """Training step of the weights."""
        return self.manifest.step

    def fingerprint(self) -> str:
        """A hash of all weights and settings that its images depend on; reads the frozen parts' weights."""
        parts = ("model", "schedule", "inputs", "first_stage", "frozen_conditioners")
        settings = {name: OmegaConf.to_container(self.config[name], resolve=True) for name in parts}
        settings |= {"prediction": self.config.task.prediction, "weights": self.origin["weights"]}
        # The manifest has the checksums of the checkpoint's files; those of frozen parts may have been replaced.
        digest = hashlib.sha256(json.dumps([settings, self.manifest.to_json()], sort_keys=True).encode())
        for module in (self.image_model.first_stage, self.image_model.frozen):
            for name, tensor in module.state_dict().items():
                digest.update(name.encode())
                digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def load_run(folder: Path, device: torch.device | str, weights: str = AVERAGE) -> LoadedRun:
    """Builds the run's model with the weights of its newest complete checkpoint, in evaluation mode.

    Args:
        folder: run folder with config.yaml and checkpoints/, or one of those checkpoints.
        device: where model and first stage are put.
        weights: "ema", the moving average, "raw", the weights of the last step, or another average that the run kept.

    Raises EvaluationError when the folder is no run of text-to-image diffusion, holds no complete checkpoint,
    or its checkpoint or first stage does not fit its configuration.
    """
    folder, checkpoint = located(folder)
    config = read_config(folder)
    if config.task.prediction not in PREDICTIONS:
        choices = ", ".join(PREDICTIONS)
        raise EvaluationError(f"run={folder}: task.prediction={config.task.prediction}; choose one of {choices}")
    manifest, stored = _stored(folder, checkpoint, weights)
    try:
        model: LatentDiffusion = instantiate(config.model)
        first_stage: FirstStage = instantiate(config.first_stage)
        frozen = load_frozen_conditioners(config)
        schedule: NoiseSchedule = instantiate(config.schedule)
        model.load_state_dict(stored)
    except InstantiationException as error:
        raise EvaluationError(f"run={folder}: {error.__cause__ or error}") from error
    except (WeightsError, RuntimeError) as error:
        raise EvaluationError(f"run={folder}: {error}") from error
    if "latent_scale" in manifest.extra:
        first_stage.scale.fill_(manifest.extra["latent_scale"])
    inputs = dict(instantiate(config.inputs))
    image_model = ImageModel(
        model.to(device).eval().requires_grad_(False),
        frozen.to(device),
        first_stage.to(device),
        schedule,
        PREDICTIONS[config.task.prediction],
        {name: kind.nothing() for name, kind in inputs.items()},
    )
    origin = {"run": str(folder), "training_step": manifest.step, "weights": weights}
    return LoadedRun(image_model, inputs, config.data.image_size, origin, config, manifest)


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier of noisy latents, what its classes are read as, and what its latents and their noise are."""

    model: NoisyClassifier
    label: Label
    first_stage: DictConfig
    latent_scale: float
    schedule: NoiseSchedule


def load_classifier(folder: Path, device: torch.device | str, weights: str = AVERAGE) -> LoadedClassifier:
    """The classifier of a run's newest complete checkpoint, in evaluation mode; arguments as of `load_run`.

    Raises EvaluationError when the folder is no run of a classifier, or holds no complete checkpoint that fits it.
    """
    folder, checkpoint = located(folder)
    config = read_config(folder, ("noisy_classifier",))
    manifest, stored = _stored(folder, checkpoint, weights)
    try:
        model: NoisyClassifier = instantiate(config.model)
        model.load_state_dict(stored)
    except (InstantiationException, RuntimeError) as error:
        raise EvaluationError(f"run={folder}: {error.__cause__ or error}") from error
    return LoadedClassifier(
        model.to(device).eval().requires_grad_(False),
        instantiate(config.inputs[LABEL]),
        config.first_stage.autoencoder,
        manifest.extra["latent_scale"],
        instantiate(config.schedule),
    )


def located(path: Path) -> tuple[Path, Path | None]:
    """A run's folder and its newest complete checkpoint, None where there is none; or the folder of the checkpoint at
    `path`, and that checkpoint."""
    if (path / MANIFEST).exists():
        return path.resolve().parents[1], path
    return path, newest_complete(path / "checkpoints")


def kind_of(manifest: Manifest, weights: str, checkpoint: Path) -> str:
    """What a checkpoint calls the weights that users call so. Raises EvaluationError where it has none."""
    choices = [RAW, *(kind for kind in manifest.kinds if kind not in BASE_KINDS)]
    if weights not in choices:
        raise EvaluationError(f"weights={weights}: {checkpoint} has these: {', '.join(choices)}")
    return "param" if weights == RAW else weights


def _stored(folder: Path, checkpoint: Path | None, weights: str) -> tuple[Manifest, dict[str, Tensor]]:
    """Manifest and weights of a checkpoint. Raises EvaluationError."""
    if checkpoint is None:
        raise EvaluationError(f"run={folder}: no complete checkpoint in {folder / 'checkpoints'}; train it first")
    try:
        manifest = load_manifest(checkpoint)
        stored = read_weights(checkpoint, ENGINE, kind_of(manifest, weights, checkpoint))
    except CheckpointError as error:
        raise EvaluationError(f"run={folder}: {error}") from error
    if broken := not_finite(stored):
        raise EvaluationError(f"run={folder}: {checkpoint.name} holds infinite numbers, or NaN, in {broken}")
    return manifest, stored


def read_config(folder: Path, tasks: tuple[str, ...] = ("diffusion",)) -> DictConfig:
    """The configuration of a run of one of these tasks. Raises EvaluationError when there is none, or of another."""
    path = folder / "config.yaml"
    if not path.exists():
        raise EvaluationError(f"run={folder}: there is no config.yaml; give the folder that `ldm train` made")
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    if config.task.name not in tasks:
        raise EvaluationError(f"run={folder}: its task is {config.task.name}; give a run of task {' or '.join(tasks)}")
    return config
