"""The models of Hugging Face's diffusers: names, shapes and settings both ways, without that library and without files.

A configuration is what `config.json` in a model's folder says; a state dict is what lies beside it. Importers take
tensors over in their dtype and on their device, without a copy where they fit as they are: clone them if the state
dict is used again. Each raises ValueError for settings that would compute something else here, and for names and
shapes that don't fit.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.autoencoder import Autoencoder
from models.conditioners import Conditioner
from models.conditioners.class_token import ClassToken
from models.conditioners.clip_text import ClipText
from models.conditioners.text_transformer import TextTransformer
from models.interop.diffusers_autoencoder import autoencoder_config, build_autoencoder
from models.interop.diffusers_names import autoencoder_names, unet_names
from models.interop.diffusers_settings import Config
from models.interop.diffusers_text import (
    HEAD,
    class_config,
    class_token,
    class_weights,
    clip_config,
    clip_text,
    clip_weights,
    text_config,
    text_transformer,
    text_weights,
)
from models.interop.diffusers_unet import build_unet, unet_config
from models.interop.layers import exported, fill
from models.latent_diffusion import FirstStage
from models.schedule import NoiseSchedule, linear
from models.unet import UNet

__all__ = [
    "autoencoder_config",
    "class_config",
    "class_token",
    "clip_config",
    "clip_text",
    "first_stage",
    "noise_schedule",
    "scheduler_config",
    "state_dict",
    "text_config",
    "text_transformer",
    "unet",
    "unet_config",
    "unused",
]

OLD_ATTENTION = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.")
TODAY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of plain attention's layers in files from before diffusers 0.18, which many published folders are, and now."""
SCHEDULER_DEFAULTS: Config = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}
"""What DDIMScheduler and its like take where a folder doesn't say."""


def unet(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> UNet:
    """The denoiser of a UNet2DConditionModel, or of a UNet2DModel."""
    with torch.device("meta"):  # no time or memory for weights that are replaced at once
        model = build_unet(config)
    fill(model, unet_names(model), _renamed(state_dict))
    return model


def first_stage(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> FirstStage:
    """The first stage of an AutoencoderKL, or of a VQModel; its scale is their scaling_factor."""
    with torch.device("meta"):
        model, scale = build_autoencoder(config)
    fill(model, autoencoder_names(model), _renamed(state_dict))
    return FirstStage(model, scale)


def noise_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """The schedule of a DDIMScheduler or its like. What belongs to their sampling is not looked at."""
    settings: Config = {**SCHEDULER_DEFAULTS, **config}
    needed: Config = {
        "beta_schedule": "scaled_linear",
        "trained_betas": None,
        "prediction_type": "epsilon",
        "rescale_betas_zero_snr": False,
    }
    wrong = {key: settings.get(key) for key, value in needed.items() if settings.get(key) != value}
    if wrong:
        raise ValueError(
            f"settings that can't be imported: {wrong}; only { ({key: needed[key] for key in wrong}) } can"
        )
    return linear(settings["beta_start"], settings["beta_end"], settings["num_train_timesteps"])


def scheduler_config(schedule: NoiseSchedule) -> Config:
    """Settings of a DDIMScheduler with this schedule, and with the steps and the end of ours.

    It takes the steps of our `ddim` wherever their number divides the schedule's, and is short of it.
    Raises ValueError for a schedule that isn't even in its betas' square roots.
    """
    start, end = (float(f"{float(beta):.15g}") for beta in (schedule.betas[0], schedule.betas[-1]))
    even = 0 < start <= end < 1 and torch.equal(linear(start, end, schedule.steps).betas, schedule.betas)
    if not even:
        raise ValueError("this noise schedule's betas are not even in their square roots: it can't be exported")
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": schedule.steps,
        "beta_start": start,
        "beta_end": end,
        "beta_schedule": "scaled_linear",
        "trained_betas": None,
        "prediction_type": "epsilon",
        "clip_sample": False,
        "thresholding": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "rescale_betas_zero_snr": False,
    }


def state_dict(model: UNet | Autoencoder | Conditioner) -> dict[str, Tensor]:
    """The model's weights under the names and in the shapes of diffusers' model: undoes its importer.

    LDMBertModel has a head that it never uses. It gets zeros, and `state_dict(model) | unused(original)` has the
    original's. Tensors share the model's memory where they can: clone them to keep them. Raises ValueError for a
    conditioner that has no place there.
    """
    if isinstance(model, UNet):
        return exported(model, unet_names(model))
    if isinstance(model, Autoencoder):
        return exported(model, autoencoder_names(model))
    if isinstance(model, TextTransformer):
        return text_weights(model)
    if isinstance(model, ClipText):
        return clip_weights(model)
    if isinstance(model, ClassToken):
        return class_weights(model)
    raise ValueError(f"{type(model).__name__}: diffusers has no such model")


def unused(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries that no importer takes: the head of an LDMBertModel."""
    return {name: v for name, v in state_dict.items() if name.startswith(HEAD)}


def _renamed(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under today's names."""
    return {OLD_ATTENTION.sub(lambda m: f"{m[1]}.{TODAY[m[2]]}.", name): v for name, v in state_dict.items()}
