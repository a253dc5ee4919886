"""The first stage's file: weights as safetensors, named by path."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from evaluation.weights import WeightsError, fill, read_weights
from models.autoencoder import Autoencoder, IdentityAutoencoder
from models.latent_diffusion import FirstStage

REMEDY = (
    "give the path of a trained first stage (ldm train experiment=demo_autoencoder writes first_stage.safetensors into "
    "its run folder)"
)


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
    stored = read_weights(weights, "first_stage.weights", REMEDY)
    fill(autoencoder, stored, weights, "first_stage.weights", "first_stage.autoencoder")
    return FirstStage(autoencoder, 1.0 if scale is None else scale)


def save_first_stage(state: dict[str, Tensor], path: Path) -> None:
    """Writes an autoencoder's state dict as float16 safetensors: half the size, rounding far below its error."""
    partial = path.with_suffix(".partial")
    save_file({name: tensor.half().contiguous() for name, tensor in state.items()}, partial)
    partial.replace(path)
