"""Whole checkpoints in the CompVis format: every part in one file, told apart by the beginnings of its names.

The only file of `models` that reads and writes files. It executes nothing of what it reads.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

UNET = "model.diffusion_model."
FIRST_STAGE = "first_stage_model."
CONDITIONER = "cond_stage_model."
EMA = "model_ema."
EMA_COUNTERS = ("decay", "num_updates")
SCALE_FACTOR = "scale_factor"
SCHEDULE = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "logvar",
)
"""Tensors of the published diffusion process: one number a timestep, all of them functions of betas but logvar."""

BYSTANDERS = (
    "pytorch_lightning.callbacks.",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)
"""Beginnings of names of classes that training left in published files, beside the weights and of no use to them."""


def below(prefix: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries whose names begin with prefix, without it: one part of a whole checkpoint."""
    return {name.removeprefix(prefix): v for name, v in state_dict.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint in its parts, under published names below each part's prefix; absent parts are empty.

    unet: the weights of the last training step. unet_ema: their moving average, under the same names; ema_counters:
    its `decay` and `num_updates`. first_stage, conditioner: as published, with what no importer takes. schedule:
    `betas`, `alphas_cumprod` and what follows from them, float [timesteps]. scale_factor: of the latents, float [].
    """

    unet: dict[str, Tensor]
    first_stage: dict[str, Tensor] = field(default_factory=dict)
    conditioner: dict[str, Tensor] = field(default_factory=dict)
    unet_ema: dict[str, Tensor] = field(default_factory=dict)
    ema_counters: dict[str, Tensor] = field(default_factory=dict)
    schedule: dict[str, Tensor] = field(default_factory=dict)
    scale_factor: Tensor | None = None

    def state_dict(self) -> dict[str, Tensor]:
        """All of it under whole published names. Raises ValueError when unet_ema has other names than unet."""
        published = _ema_names(self.unet) if self.unet_ema else {}
        _check("unet_ema", published.values(), self.unet_ema)
        scale = {} if self.scale_factor is None else {SCALE_FACTOR: self.scale_factor}
        return {
            **{UNET + name: v for name, v in self.unet.items()},
            **{EMA + stripped: self.unet_ema[name] for stripped, name in published.items()},
            **{EMA + name: v for name, v in self.ema_counters.items()},
            **{FIRST_STAGE + name: v for name, v in self.first_stage.items()},
            **{CONDITIONER + name: v for name, v in self.conditioner.items()},
            **self.schedule,
            **scale,
        }


def from_state_dict(state_dict: Mapping[str, Tensor]) -> Checkpoint:
    """A whole published state dict in its parts. Raises ValueError with the names that belong to none of them."""
    parts = (UNET, FIRST_STAGE, CONDITIONER, EMA)
    known = {*SCHEDULE, SCALE_FACTOR}
    unknown = sorted(name for name in state_dict if not name.startswith(parts) and name not in known)
    if unknown:
        raise ValueError(
            f"{len(unknown)} entries belong to no part of a published checkpoint: {unknown}; known are names below "
            f"{', '.join(parts)}, and {', '.join(sorted(known))}"
        )
    unet = below(UNET, state_dict)
    average = below(EMA, state_dict)
    counters = {name: average.pop(name) for name in EMA_COUNTERS if name in average}
    names = _ema_names(unet) if average else {}
    _check(f"the moving average ({EMA}*)", names, average)
    return Checkpoint(
        unet=unet,
        first_stage=below(FIRST_STAGE, state_dict),
        conditioner=below(CONDITIONER, state_dict),
        unet_ema={names[stripped]: v for stripped, v in average.items()},
        ema_counters=counters,
        schedule={name: state_dict[name] for name in SCHEDULE if name in state_dict},
        scale_factor=state_dict.get(SCALE_FACTOR),
    )


def load(path: str | Path) -> Checkpoint:
    """Reads a whole checkpoint, `.safetensors` or `.ckpt` (torch's zip or older format), onto the CPU.

    Of a `.ckpt` it reads weights only; nothing in it is executed. Raises ValueError when the file can't be read, when
    it holds objects beyond weights that aren't known to be harmless, or when its names are not a checkpoint's.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            return from_state_dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not a readable safetensors file ({error})") from error
    content = _read_weights(path)
    state_dict = content.get("state_dict", content)
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"{path}: its state_dict is {type(state_dict).__name__}; it must be names with tensors")
    wrong = sorted(str(name) for name, v in state_dict.items() if not isinstance(v, Tensor))
    if wrong:
        raise ValueError(f"{path}: {wrong} in its state dict are no tensors: this is no checkpoint of this format")
    return from_state_dict(state_dict)


def save(checkpoint: Checkpoint, path: str | Path) -> None:
    """Writes a whole checkpoint as safetensors under published names. The file appears complete or not at all."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    weights = {name: v.detach().cpu().contiguous() for name, v in checkpoint.state_dict().items()}
    save_file(weights, partial, metadata={"format": "pt"})
    os.replace(partial, path)


class _Bystander:
    """Takes the place of every object in BYSTANDERS, so that none of their code is needed or run."""

    def __new__(cls, *arguments: object) -> _Bystander:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def _read_weights(path: Path) -> Mapping[str, Any]:
    """What torch stored in a file, as far as it is tensors and plain values."""
    try:
        zipped = zipfile.is_zipfile(path)
        strange = get_unsafe_globals_in_checkpoint(path) if zipped else []
        # What is not known to be harmless makes torch raise UnpicklingError.
        harmless: list[Any] = [(_Bystander, name) for name in strange if name.startswith(BYSTANDERS)]
        with safe_globals(harmless):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(_refusal(path, f"it asks for {wanted[1]}" if wanted else str(error))) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: not a readable checkpoint ({error})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds {type(content).__name__}; a checkpoint is names with tensors")
    return content


def _refusal(path: Path, reason: str) -> str:
    return (
        f"{path}: holds more than weights ({reason}), and reading that could execute code; nothing was read. "
        "If you trust its source, write its weights alone where it was made: "
        "torch.save({'state_dict': checkpoint['state_dict']}, path), or as safetensors"
    )


def _ema_names(unet: Mapping[str, Tensor]) -> dict[str, str]:
    """Published name of each weight's moving average, which is without dots, to the weight's name in the UNet."""
    names: dict[str, str] = {}
    for name in unet:
        stripped = f"diffusion_model.{name}".replace(".", "")
        if stripped in names:
            raise ValueError(
                f"{name} and {names[stripped]} are the same name without dots: their averages can't be told"
            )
        names[stripped] = name
    return names


def _check(what: str, wanted: Any, found: Mapping[str, Tensor]) -> None:
    missing, surplus = sorted(set(wanted) - found.keys()), sorted(found.keys() - set(wanted))
    if found and (missing or surplus):
        raise ValueError(f"{what} does not fit the UNet's weights: lacks {missing}, has too many {surplus}")
