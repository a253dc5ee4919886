"""The first stage's file: weights as safetensors, named by path."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.autoencoder import Autoencoder, IdentityAutoencoder
from models.latent_diffusion import FirstStage

PROJECT = Path(__file__).resolve().parents[1]


class FirstStageError(Exception):
    """First-stage weights are missing, unreadable or of another model; the message says which and what to do."""


def load_first_stage(
    autoencoder: Autoencoder | IdentityAutoencoder, weights: str | None, scale: float | None
) -> FirstStage:
    """Returns the frozen first stage with the weights of a safetensors file in it, on the CPU in float32.

    weights: path, relative ones taken from the working directory and then from the project's folder; None for an
    identity, which has no weights. scale: factor on latents; None stands for 1 until the training task has estimated
    it (LDM App. G).
    Raises FirstStageError when the file is missing, is no safetensors file, or holds another model.
    """
    if isinstance(autoencoder, IdentityAutoencoder):
        if weights is not None:
            raise FirstStageError(f"first_stage.weights={weights}: an identity has no weights; set it to null")
        return FirstStage(autoencoder, 1.0 if scale is None else scale)
    if weights is None:
        raise FirstStageError(
            "first_stage.weights=null: give the path of a trained first stage (ldm train experiment=demo_autoencoder "
            "writes first_stage.safetensors into its run folder)"
        )
    path = _find(weights)
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise FirstStageError(
            f"first_stage.weights={weights}: not a readable safetensors file ({error}); give another, or train it again"
        ) from None
    wanted = {name: tuple(tensor.shape) for name, tensor in autoencoder.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise FirstStageError(
                f"first_stage.weights={weights}: {name} is {found.get(name, 'absent')} in the file and "
                f"{wanted.get(name, 'absent')} in first_stage.autoencoder; make the two agree"
            )
    autoencoder.load_state_dict({name: tensor.float() for name, tensor in stored.items()})
    return FirstStage(autoencoder, 1.0 if scale is None else scale)


def save_first_stage(state: dict[str, Tensor], path: Path) -> None:
    """Writes an autoencoder's state dict as float16 safetensors: half the size, rounding far below its error."""
    partial = path.with_suffix(".partial")
    save_file({name: tensor.half().contiguous() for name, tensor in state.items()}, partial)
    partial.replace(path)


def _find(weights: str) -> Path:
    candidates = list(dict.fromkeys([Path(weights), PROJECT / weights]))
    for path in candidates:
        if path.is_file():
            return path
    looked = " and ".join(map(str, candidates))
    raise FirstStageError(
        f"first_stage.weights={weights}: no such file (looked for {looked}); give the path of a trained first stage"
    )
