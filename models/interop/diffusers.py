"""The models of Hugging Face's diffusers: names, shapes and settings both ways, without that library and without files.

A configuration is what `config.json` in a model's folder says; a state dict is what lies beside it. Importers take
tensors over in their dtype and on their device, without a copy where they fit as they are: clone them if the state
dict is used again. Each raises ValueError for settings that would compute something else here, and for names and
shapes that don't fit.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.autoencoder import Autoencoder
from models.conditioners.text_transformer import TextBlock, TextTransformer
from models.interop.diffusers_autoencoder import autoencoder_config, build_autoencoder
from models.interop.diffusers_names import autoencoder_names, text_names, unet_names
from models.interop.diffusers_settings import Config
from models.interop.diffusers_unet import build_unet, unet_config
from models.interop.layers import exported, fill
from models.latent_diffusion import FirstStage
from models.schedule import NoiseSchedule, linear
from models.unet import UNet

__all__ = [
    "autoencoder_config",
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

HEAD = "to_logits."
TEXT_DEFAULTS: Config = {
    "vocab_size": 30_522,
    "max_position_embeddings": 77,
    "d_model": 1280,
    "encoder_ffn_dim": 5120,
    "encoder_layers": 32,
    "encoder_attention_heads": 8,
    "head_dim": 64,
    "activation_function": "gelu",
    "scale_embedding": False,
}
"""What LDMBertConfig takes where a folder doesn't say."""
SCHEDULER_DEFAULTS: Config = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}
"""The same for DDIMScheduler and its like."""


def unet(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> UNet:
    """The denoiser of a UNet2DConditionModel, or of a UNet2DModel."""
    with torch.device("meta"):  # no time or memory for weights that are replaced at once
        model = build_unet(config)
    fill(model, unet_names(model), state_dict)
    return model


def first_stage(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> FirstStage:
    """The first stage of an AutoencoderKL, or of a VQModel; its scale is their scaling_factor."""
    with torch.device("meta"):
        model, scale = build_autoencoder(config)
    fill(model, autoencoder_names(model), state_dict)
    return FirstStage(model, scale)


def text_transformer(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> TextTransformer:
    """The conditioner of an LDMBertModel, without its head, which is never used; see `unused`."""
    settings = {**TEXT_DEFAULTS, **config}
    with torch.device("meta"):
        model = TextTransformer(
            vocabulary_size=settings["vocab_size"],
            length=settings["max_position_embeddings"],
            width=settings["d_model"],
            depth=settings["encoder_layers"],
            heads=settings["encoder_attention_heads"],
            head_width=settings["head_dim"],
        )
    ours = text_config(model)
    wrong = {key: settings[key] for key in TEXT_DEFAULTS if settings[key] != ours[key]}
    if wrong:
        raise ValueError(f"settings that can't be imported: {wrong}; only { ({key: ours[key] for key in wrong}) } can")
    fill(model, text_names(model), {name: v for name, v in state_dict.items() if not name.startswith(HEAD)})
    return model


def text_config(model: TextTransformer) -> Config:
    """Settings of the LDMBertModel that computes what this transformer does."""
    block, width = model.blocks[0], model.tokens.embedding_dim
    assert isinstance(block, TextBlock)
    return {
        "architectures": ["LDMBertModel"],
        "model_type": "ldmbert",
        "vocab_size": model.tokens.num_embeddings,
        "max_position_embeddings": model.length,
        "d_model": width,
        "encoder_ffn_dim": 4 * width,
        "encoder_layers": len(model.blocks),
        "encoder_attention_heads": block.attention.heads,
        "head_dim": block.attention.query.out_features // block.attention.heads,
        "activation_function": "gelu",
        "scale_embedding": False,
        "dropout": 0.0,
        "pad_token_id": 0,
    }


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


def state_dict(model: UNet | Autoencoder | TextTransformer) -> dict[str, Tensor]:
    """The model's weights under the names and in the shapes of diffusers' model: undoes its importer.

    LDMBertModel has a head that it never uses. It gets zeros, and `state_dict(model) | unused(original)` has the
    original's. Tensors share the model's memory where they can: clone them to keep them.
    """
    if isinstance(model, UNet):
        return exported(model, unet_names(model))
    if isinstance(model, TextTransformer):
        tokens = model.tokens.weight
        head = {f"{HEAD}weight": torch.zeros_like(tokens), f"{HEAD}bias": tokens.new_zeros(len(tokens))}
        return exported(model, text_names(model)) | head
    return exported(model, autoencoder_names(model))


def unused(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries that no importer takes: the head of an LDMBertModel."""
    return {name: v for name, v in state_dict.items() if name.startswith(HEAD)}
