"""Reconstructions by a first stage, as its table in the paper measures them (LDM Tab. 8)."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import Tensor

from evaluation.errors import EvaluationError
from evaluation.first_stage import load_first_stage
from evaluation.pictures import to_uint8
from evaluation.run import read_config
from evaluation.weights import WeightsError
from models.autoencoder import Autoencoder, IdentityAutoencoder


def load_autoencoder(folder: Path, device: torch.device | str) -> tuple[Autoencoder | IdentityAutoencoder, int]:
    """The first stage of a run, in evaluation mode, and the training step of its weights (0: not this run's).

    folder: of a first stage's run, or of a diffusion run that uses one. Raises EvaluationError when there is none.
    """
    config = read_config(folder, ("autoencoder", "diffusion"))
    try:
        if config.task.name == "autoencoder":
            weights = folder / "first_stage.safetensors"
            first_stage = load_first_stage(instantiate(config.model), str(weights), 1.0)
        else:
            first_stage = instantiate(config.first_stage)
    except InstantiationException as error:
        raise EvaluationError(f"run={folder}: {error.__cause__ or error}") from error
    except WeightsError as error:
        raise EvaluationError(f"run={folder}: {error}") from error
    step = int(config.steps) if config.task.name == "autoencoder" else 0
    return first_stage.to(device).autoencoder, step


@torch.no_grad()
def reconstruct(autoencoder: Autoencoder | IdentityAutoencoder, images: Tensor, device: torch.device) -> Tensor:
    """The most likely latents of uint8 [B, 3, H, W], decoded: uint8 of the same shape on the CPU.

    Raises ValueError when the first stage's f doesn't divide H and W.
    """
    height, width = images.shape[-2:]
    f = autoencoder.downsampling
    if height % f or width % f:
        raise ValueError(f"image size {height} x {width}: must be divisible by the first stage's {f}")
    no_noise = torch.zeros(len(images), autoencoder.latent_channels, height // f, width // f, device=device)
    latents = autoencoder.latents(images.to(device).float() / 127.5 - 1, no_noise)
    return to_uint8(autoencoder.decode(latents)).cpu()
