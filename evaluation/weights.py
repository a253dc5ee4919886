"""Weights of a frozen module, from a safetensors file; weights of other people's networks, whose hash is checked."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import fsspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

PROJECT = Path(__file__).resolve().parents[1]


class WeightsError(Exception):
    """Weights are missing, unreadable or of another model; the message says which and what to do."""


def read_weights(path: str | None, key: str, remedy: Callable[[], str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    path: relative ones are taken from the working directory and then from the project's folder. key: the setting
    that named it. remedy: tells what to do when there is none. Raises WeightsError.
    """
    if path is None:
        raise WeightsError(f"{key}=null: {remedy()}")
    candidates = list(dict.fromkeys([Path(path), PROJECT / path]))
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise WeightsError(f"{key}={path}: no such file (looked for {' and '.join(map(str, candidates))}); {remedy()}")
    try:
        return load_file(found)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{key}={path}: not a readable safetensors file ({error}); {remedy()}") from None


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a number that is infinite or NaN; None when there is none."""
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)


def fill(module: nn.Module, stored: dict[str, Tensor], path: str | None, key: str, described_by: str) -> None:
    """Puts weights into a module, in float32. Raises WeightsError, naming every entry that doesn't fit, or the first
    that isn't finite.

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
    if broken := not_finite(stored):
        raise WeightsError(f"{key}={path}: {broken} holds infinite numbers, or NaN; take another file")
    module.load_state_dict(
        {n: tensor.float() if tensor.is_floating_point() else tensor for n, tensor in stored.items()}
    )


@dataclass(frozen=True)
class WeightsFile:
    """A network's state dict, and the sha256 of the file that it came from."""

    state: dict[str, Tensor]
    sha256: str


def read_weights_file(location: str, sha256: str | None) -> WeightsFile:
    """The state dict at a path or URL, written by torch.save or as safetensors. Nothing else than tensors is loaded.

    sha256: that the file must have; None: any. Raises ValueError when it can't be read, has another hash, or holds
    something else.
    """
    path, found = checked_file(location, sha256)
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # torch.load has no exception type of its own
        raise ValueError(f"{location} does not hold a plain state dict of tensors: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{location} does not hold a plain state dict of tensors")
    return WeightsFile(state, found)


def checked_file(location: str, sha256: str | None) -> tuple[Path, str]:
    """The file at a path, or what is at a URL, brought here once; and its sha256.

    sha256: that it must have; None: any. Raises ValueError when it can't be read, and when it has another one.
    """
    try:
        path = _brought_here(location) if "://" in location else Path(location)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"cannot read weights at {location}: {error.__cause__ or error}") from error
    if sha256 is not None and found != sha256:
        raise ValueError(
            f"the weights at {location} have the sha256 {found} and not {sha256}: they are other weights, or were not "
            "read to their end. Get the right ones, or name these in the protocol: in features_sha256, or in the "
            "metric's network" + (f"; remove {path} to read the URL again" if str(path) != location else "")
        )
    return path, found


def _brought_here(url: str) -> Path:
    """The local copy of what is at a URL; one process of a machine reads it, others wait for it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ldm" / "weights"
    path = cache / hashlib.sha256(url.encode()).hexdigest()[:16] / PurePosixPath(urlsplit(url).path).name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            part = path.with_name(f"{path.name}.part")
            with fsspec.open(url, "rb") as source, part.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            part.replace(path)  # whole or absent, whatever ends this process
    return path
