"""Weights of a frozen module, from a safetensors file."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

PROJECT = Path(__file__).resolve().parents[1]


class WeightsError(Exception):
    """Weights are missing, unreadable or of another model; the message says which and what to do."""


def read_weights(path: str | None, key: str, remedy: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    path: relative ones are taken from the working directory and then from the project's folder. key: the setting
    that named it. remedy: what to do when there is none. Raises WeightsError.
    """
    if path is None:
        raise WeightsError(f"{key}=null: {remedy}")
    candidates = list(dict.fromkeys([Path(path), PROJECT / path]))
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise WeightsError(f"{key}={path}: no such file (looked for {' and '.join(map(str, candidates))}); {remedy}")
    try:
        return load_file(found)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{key}={path}: not a readable safetensors file ({error}); {remedy}") from None


def fill(module: nn.Module, stored: dict[str, Tensor], path: str | None, key: str, described_by: str) -> None:
    """Puts weights into a module, in float32. Raises WeightsError, naming every entry that doesn't fit.

    path, key: where the weights come from. described_by: the setting that the module was built from.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    faults = [
        f"{name} is {found.get(name, 'absent')} in the file and {wanted.get(name, 'absent')} in {described_by}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    if faults:
        raise WeightsError(f"{key}={path}: {'; '.join(faults)}; make the two agree")
    module.load_state_dict(
        {n: tensor.float() if tensor.is_floating_point() else tensor for n, tensor in stored.items()}
    )
