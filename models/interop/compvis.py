"""Checkpoints published with the paper (the CompVis latent-diffusion format).

Each importer takes the `params` of the published YAML and the state dict below the part's prefix, and
returns our module with those weights in it. Tensors are taken over in their dtype and on their device,
without a copy where they fit as they are: clone them if the state dict is used again. Each importer raises
ValueError for settings that it doesn't know or support, and for names and shapes that don't fit.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.autoencoder import AutoencoderKL, AutoencoderVQ
from models.conditioners.text_transformer import TextTransformer
from models.interop.compvis_names import Names, autoencoder_names, text_names, unet_names
from models.unet import UNet

UNET = "model.diffusion_model."
FIRST_STAGE = "first_stage_model."
TEXT_TRANSFORMER = "cond_stage_model.transformer."


def below(prefix: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries whose names begin with prefix, without it: one part of a whole checkpoint."""
    return {name.removeprefix(prefix): v for name, v in state_dict.items() if name.startswith(prefix)}


def unet(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> UNet:
    """The denoiser of `unet_config.params` and the entries below `model.diffusion_model.`."""
    settings = _Settings(config, ignored=("image_size", "use_checkpoint", "legacy"))
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
            dropout=settings.take("dropout", 0.0),
        )
    settings.finish()
    _fill(model, unet_names(model), state_dict)
    return model


def first_stage(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> AutoencoderKL | AutoencoderVQ:
    """The first stage of `first_stage_config.params` and the entries below `first_stage_model.`; VQ where n_embed is.

    Entries below `loss.`, the adversary and perceptual network of its training, are left out.
    """
    settings = _Settings(config, ignored=("monitor", "lossconfig", "ckpt_path", "ignore_keys"))
    inner = _Settings(settings.take("ddconfig"), ignored=())
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
    model: AutoencoderKL | AutoencoderVQ
    with torch.device("meta"):
        if codebook_entries is None:
            model = AutoencoderKL(
                channels,
                multipliers,
                residual_blocks,
                latent_channels,
                z_channels,
                in_channels,
                attention_levels=attention_levels,
                middle_attention=attention_type == "vanilla",
            )
        else:
            model = AutoencoderVQ(
                channels,
                multipliers,
                residual_blocks,
                latent_channels,
                codebook_entries,
                z_channels,
                in_channels,
                attention_levels=attention_levels,
                middle_attention=attention_type == "vanilla",
            )
    weights = {name: v for name, v in state_dict.items() if not name.startswith("loss.")}
    _fill(model, autoencoder_names(model), weights)
    return model


def text_transformer(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> TextTransformer:
    """The encoder of `cond_stage_config.params` and the entries below `cond_stage_model.transformer.`.

    Takes the YAML's keys (n_embed, n_layer, vocab_size, max_seq_len) or those of the network inside
    (dim, depth, num_tokens, max_seq_len, heads, dim_head). `to_logits`, a head that was published but never
    used, is left out: it would get no gradient.
    """
    settings = _Settings(config, ignored=("use_tokenizer", "device", "embedding_dropout"))
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
    weights = {name: v for name, v in state_dict.items() if not name.startswith("to_logits.")}
    _fill(model, text_names(model), weights)
    return model


class _Settings:
    """A published configuration that is read key by key, so that none is passed over in silence."""

    def __init__(self, config: Mapping[str, Any], ignored: tuple[str, ...]) -> None:
        self._left = {key: value for key, value in config.items() if key not in ignored}

    def take(self, key: str, *default: Any) -> Any:
        if key not in self._left and not default:
            raise ValueError(f"the configuration has no {key}; left in it: {sorted(self._left)}")
        return self._left.pop(key, *default)

    def finish(self) -> None:
        if self._left:
            raise ValueError(f"this importer doesn't know the settings {self._left}: nothing can be imported")


def _fill(model: nn.Module, names: Names, state_dict: Mapping[str, Tensor]) -> None:
    """Puts the published weights into a model; every name on both sides must be used exactly once."""
    expected = model.state_dict()
    left = dict(state_dict)
    weights: dict[str, Tensor] = {}
    for ours, theirs in names:
        for name in (f"{ours}.weight", f"{ours}.bias"):
            if name not in expected:
                continue
            leaf = name.removeprefix(ours)
            missing = [path + leaf for path in theirs if path + leaf not in left]
            if missing:
                raise ValueError(f"the checkpoint lacks {missing}: check the prefix and the configuration")
            parts = [left.pop(path + leaf) for path in theirs]
            weights[name] = _fitted(torch.cat(parts) if len(parts) > 1 else parts[0], expected[name], name)
    if left:
        raise ValueError(f"the checkpoint has {len(left)} entries too many, such as {sorted(left)[:3]}")
    model.load_state_dict(weights, assign=True)


def _fitted(value: Tensor, expected: Tensor, name: str) -> Tensor:
    """value in expected's shape: published convolutions of one position are linear layers here."""
    ones = (1,) * (value.ndim - expected.ndim)
    if value.shape != (*expected.shape, *ones):
        raise ValueError(
            f"{name} has shape {list(value.shape)} in the checkpoint and {list(expected.shape)} by the "
            "configuration: they belong to different models"
        )
    return value.reshape(expected.shape)
