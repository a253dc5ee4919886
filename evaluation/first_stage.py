"""The first stage's file: weights as safetensors, named by path."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

from evaluation.weights import WeightsError, fill, read_weights
from models.autoencoder import Autoencoder, IdentityAutoencoder
from models.latent_diffusion import FirstStage
from training.compose import CONFIG_FOLDER, choices

SMALL = ("demo_autoencoder", "photographs_autoencoder")
"""Experiments that train first stages of their own; the others are called first_stage_NAME after conf/autoencoder."""


def load_first_stage(
    autoencoder: Autoencoder | IdentityAutoencoder, weights: str | None, scale: float | None
) -> FirstStage:
    """Returns the frozen first stage with the weights of a safetensors file in it, on the CPU in float32.

    weights: path, relative ones taken from the working directory and then from the project's folder; None for an
    identity, which has no weights. scale: factor on latents; None stands for 1 until the training task has estimated
    it (LDM App. G).
    Raises WeightsError when the file is missing, is no safetensors file, or holds another model.
    """
    if isinstance(autoencoder, IdentityAutoencoder):
        if weights is not None:
            raise WeightsError(f"first_stage.weights={weights}: an identity has no weights; set it to null")
        return FirstStage(autoencoder, 1.0 if scale is None else scale)
    stored = read_weights(weights, "first_stage.weights", partial(_remedy, autoencoder))
    fill(autoencoder, stored, weights, "first_stage.weights", "first_stage.autoencoder")
    return FirstStage(autoencoder, 1.0 if scale is None else scale)


def _remedy(autoencoder: Autoencoder) -> str:
    with torch.device("meta"):
        trained_by = [name for name, model in _trained().items() if _shapes(instantiate(model)) == _shapes(autoencoder)]
    command = (
        f"`ldm train experiment={trained_by[0]} ...`" if trained_by else "`ldm train` of a model with its settings"
    )
    return (
        f"give the path of a trained first stage of this kind: {command} writes first_stage.safetensors into its run "
        "folder; of published weights models.interop.compvis.first_stage and evaluation.first_stage.save_first_stage "
        "make such a file"
    )


def _trained() -> dict[str, DictConfig]:
    """The settings of first stages, by the experiments that train them."""

    def settings(path: str) -> DictConfig:
        return OmegaConf.load(CONFIG_FOLDER / f"{path}.yaml")  # type: ignore[return-value]

    published = {f"first_stage_{name}": settings(f"autoencoder/{name}") for name in choices("autoencoder")}
    return published | {name: settings(f"experiment/{name}").model for name in SMALL}


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def save_first_stage(state: dict[str, Tensor], path: Path) -> None:
    """Writes an autoencoder's state dict as float16 safetensors: half the size, rounding far below its error."""
    partial = path.with_suffix(".partial")
    save_file({name: tensor.half().contiguous() for name, tensor in state.items()}, partial)
    partial.replace(path)
