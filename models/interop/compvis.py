"""Checkpoints published with the paper (the CompVis latent-diffusion format).

Each importer takes the `params` of the published YAML and the state dict below the part's prefix, and
returns our module with those weights in it. Tensors are taken over in their dtype and on their device,
without a copy where they fit as they are: clone them if the state dict is used again. Each importer raises
ValueError for settings that it doesn't know or support, and for names and shapes that don't fit.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from models.autoencoder import Autoencoder, AutoencoderKL, AutoencoderVQ
from models.conditioners import Conditioner
from models.conditioners.text_transformer import TextTransformer
from models.interop import layers
from models.interop.compvis_checkpoint import FIRST_STAGE, UNET, Checkpoint, below, load, save
from models.interop.compvis_names import (
    CONDITIONER_TEXT,
    autoencoder_names,
    conditioner_names,
    text_names,
    unet_names,
)
from models.interop.layers import Layer, Settings, exported
from models.unet import UNet

__all__ = [
    "FIRST_STAGE",
    "TEXT_TRANSFORMER",
    "UNET",
    "Checkpoint",
    "below",
    "conditioner_state_dict",
    "fill",
    "fill_conditioner",
    "first_stage",
    "load",
    "save",
    "state_dict",
    "text_transformer",
    "unet",
    "unused",
]

TEXT_TRANSFORMER = f"cond_stage_model.{CONDITIONER_TEXT}"
HEAD = "to_logits."  # of the text transformer
CLIP_POSITIONS = "text_model.embeddings.position_ids"  # the numbers 0, 1, 2 ...
LOSS = "loss."  # of the first stage: adversary and perceptual network


def unet(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> UNet:
    """The denoiser of `unet_config.params` and the entries below `model.diffusion_model.`."""
    settings = Settings(config, ignored=("image_size", "use_checkpoint", "legacy"))
    multipliers = tuple(settings.take("channel_mult", (1, 2, 4, 8)))
    reached = {2**i for i in range(len(multipliers))}
    heads, head_channels = settings.take("num_heads", -1), settings.take("num_head_channels", -1)
    context_width = settings.take("context_dim", None)
    if settings.take("use_spatial_transformer", False) != (context_width is not None):
        raise ValueError(f"context_dim={context_width}: give it with use_spatial_transformer, and only then")
    with torch.device("meta"):  # no time or memory for weights that are replaced at once
        model = UNet(
            in_channels=settings.take("in_channels"),
            out_channels=settings.take("out_channels"),
            channels=settings.take("model_channels"),
            channel_multipliers=multipliers,
            residual_blocks=settings.take("num_res_blocks"),
            # Some published lists also name downsamplings that their UNet never reaches.
            attention_downsamplings=reached.intersection(settings.take("attention_resolutions")),
            heads=heads if head_channels == -1 else None,
            head_channels=None if head_channels == -1 else head_channels,
            context_width=context_width,
            transformer_depth=settings.take("transformer_depth", 1),
            resblock_updown=settings.take("resblock_updown", False),
            scale_shift_norm=settings.take("use_scale_shift_norm", False),
            classes=settings.take("num_classes", None),
            dropout=settings.take("dropout", 0.0),
        )
    settings.finish()
    fill(model, state_dict)
    return model


def first_stage(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> AutoencoderKL | AutoencoderVQ:
    """The first stage of `first_stage_config.params` and the entries below `first_stage_model.`; VQ where n_embed is.

    Entries below `loss.`, the adversary and perceptual network of its training, are left out; see `unused`.
    """
    settings = Settings(config, ignored=("monitor", "lossconfig", "ckpt_path", "ignore_keys"))
    inner = Settings(settings.take("ddconfig"))
    codebook_entries = settings.take("n_embed", None)
    if inner.take("double_z", True) != (codebook_entries is None):
        raise ValueError(f"n_embed={codebook_entries}: a VQ first stage has it and double_z: false, a KL one neither")
    if inner.take("dropout", 0.0) != 0.0:
        raise ValueError("dropout in the first stage is not supported: set it to 0")
    attention_type = inner.take("attn_type", "vanilla")
    if attention_type not in ("vanilla", "none"):
        raise ValueError(f"attn_type={attention_type}: only vanilla and none are supported")
    multipliers = tuple(inner.take("ch_mult"))
    resolution, attending = inner.take("resolution"), inner.take("attn_resolutions", ())
    in_channels, out_channels = inner.take("in_channels"), inner.take("out_ch")
    if in_channels != out_channels:
        raise ValueError(f"in_channels={in_channels}, out_ch={out_channels}: only equal ones are supported")
    if attending and attention_type == "none":
        raise ValueError(f"attn_resolutions={list(attending)} with attn_type=none: leave one out")
    channels, residual_blocks = inner.take("ch"), inner.take("num_res_blocks")
    latent_channels, z_channels = settings.take("embed_dim"), inner.take("z_channels")
    attention_levels = [i for i in range(len(multipliers)) if resolution // 2**i in attending]
    inner.finish()
    settings.finish()
    shape = (channels, multipliers, residual_blocks, latent_channels)
    middle_attention = attention_type == "vanilla"
    model: AutoencoderKL | AutoencoderVQ
    with torch.device("meta"):
        if codebook_entries is None:
            model = AutoencoderKL(*shape, z_channels, in_channels, 1, attention_levels, middle_attention)
        else:
            model = AutoencoderVQ(
                *shape, codebook_entries, z_channels, in_channels, 1, attention_levels, middle_attention
            )
    fill(model, state_dict)
    return model


def text_transformer(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> TextTransformer:
    """The encoder of `cond_stage_config.params` and the entries below `cond_stage_model.transformer.`.

    Takes the YAML's keys (n_embed, n_layer, vocab_size, max_seq_len) or those of the network inside
    (dim, depth, num_tokens, max_seq_len, heads, dim_head). `to_logits`, a head that was published but never
    used, is left out, because it would get no gradient; see `unused`.
    """
    settings = Settings(config, ignored=("use_tokenizer", "device", "embedding_dropout"))
    network = "dim" in config
    with torch.device("meta"):
        model = TextTransformer(
            vocabulary_size=settings.take("num_tokens") if network else settings.take("vocab_size", 30_522),
            length=settings.take("max_seq_len", 77),
            width=settings.take("dim" if network else "n_embed"),
            depth=settings.take("depth" if network else "n_layer"),
            heads=settings.take("heads", 8),
            head_width=settings.take("dim_head", 64),
        )
    settings.finish()
    fill(model, state_dict)
    return model


def state_dict(model: UNet | Autoencoder | TextTransformer) -> dict[str, Tensor]:
    """The model's weights under the published names and in the published shapes: undoes its importer, and `fill`.

    The names begin below the part's prefix. Tensors share the model's memory where they can: clone them to keep them.
    What the importer left out is carried beside the model: `state_dict(model) | unused(published)` is the whole part.
    Raises ValueError for what the format has no place for, such as a first stage's patch_size.
    """
    return exported(model, _names(model))


def fill(model: UNet | Autoencoder | TextTransformer, state_dict: Mapping[str, Tensor]) -> None:
    """Puts a published part into a model of ours, as its importer does into the one that it builds."""
    layers.fill(model, _names(model), _used(state_dict))


def conditioner_state_dict(conditioner: Conditioner) -> dict[str, Tensor]:
    """A conditioner's weights under the published names, which begin below `cond_stage_model.`; {} if it has none.

    Raises ValueError for one that no published model has.
    """
    names = conditioner_names(conditioner)
    return {} if names is None else exported(conditioner, names)


def fill_conditioner(conditioner: Conditioner, state_dict: Mapping[str, Tensor]) -> None:
    """Puts the entries below `cond_stage_model.` into a conditioner of ours: undoes `conditioner_state_dict`.

    Raises ValueError for a conditioner that no published model has, and for names and shapes that don't fit.
    """
    names, weights = conditioner_names(conditioner), _used(state_dict)
    if names is not None:
        layers.fill(conditioner, names, weights)
    elif weights:
        raise ValueError(f"{type(conditioner).__name__} has no weights, and the checkpoint has {sorted(weights)}")


def unused(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a part, named below its prefix, that no importer takes: a head, numbers, or a training's loss."""
    names = (HEAD, LOSS, f"{CONDITIONER_TEXT}{HEAD}", f"{CONDITIONER_TEXT}{CLIP_POSITIONS}")
    return {name: v for name, v in state_dict.items() if name.startswith(names)}


def _used(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: v for name, v in state_dict.items() if name not in unused(state_dict)}


def _names(model: UNet | Autoencoder | TextTransformer) -> Iterator[Layer]:
    if isinstance(model, UNet):
        return unet_names(model)
    if isinstance(model, TextTransformer):
        return text_names(model)
    if model.patch_size > 1:
        raise ValueError(f"patch_size={model.patch_size}: published first stages have none; only 1 can be exported")
    return autoencoder_names(model)
