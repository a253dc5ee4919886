"""Configurations of diffusers' autoencoders, and the same autoencoders of ours; each way gives the same network."""

from collections.abc import Mapping
from typing import Any

from models.autoencoder import AutoencoderKL, AutoencoderVQ
from models.autoencoder_layers import Attention, Level, ResidualBlock
from models.interop.diffusers_settings import (
    Config,
    check_same,
    given_settings,
    group_count,
    level_widths,
    needed,
    number,
)

KL_FIXED: Config = {
    "act_fn": "silu",
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
VQ_FIXED: Config = {"act_fn": "silu", "norm_type": "group", "lookup_from_codebook": False}


def autoencoder_config(model: AutoencoderKL | AutoencoderVQ, scale: float) -> Config:
    """Settings of the AutoencoderKL or VQModel that computes what this first stage does. scale: factor on latents.

    Raises ValueError, naming the setting, when there is none.
    """
    if model.patch_size > 1:
        raise ValueError(
            f"patch_size={model.patch_size}: diffusers' autoencoders don't fold pixels into channels; "
            "only a first stage with patch_size=1 can be exported"
        )
    levels = [level for level in model.encoder.levels if isinstance(level, Level)]
    z_channels = model.from_latent.out_channels
    encoder, decoder = "DownEncoderBlock2D", "UpDecoderBlock2D"
    attending = [isinstance(level.attentions[0], Attention) for level in levels]
    shared = {
        "in_channels": model.in_channels,
        "out_channels": model.in_channels,
        "down_block_types": [f"Attn{encoder}" if there else encoder for there in attending],
        "up_block_types": [f"Attn{decoder}" if there else decoder for there in reversed(attending)],
        "block_out_channels": level_widths(model.encoder.stem.out_channels, [_width(level) for level in levels]),
        "layers_per_block": len(levels[0].blocks),
        "latent_channels": z_channels,
        "norm_num_groups": group_count(model),
        "mid_block_add_attention": isinstance(model.encoder.middle[1], Attention),
        "scaling_factor": scale,
    }
    if isinstance(model, AutoencoderVQ):
        entries = model.codebook.entries.num_embeddings
        vector = {"num_vq_embeddings": entries, "vq_embed_dim": model.latent_channels}
        return {"_class_name": "VQModel", **VQ_FIXED, **shared, **vector}
    if z_channels != model.latent_channels:
        raise ValueError(
            f"z_channels={z_channels}, latent_channels={model.latent_channels}: diffusers' AutoencoderKL has them equal"
        )
    return {"_class_name": "AutoencoderKL", **KL_FIXED, **shared}


def build_autoencoder(config: Mapping[str, Any]) -> tuple[AutoencoderKL | AutoencoderVQ, float]:
    """Our first stage of the settings of an AutoencoderKL or VQModel, and the factor on its latents.

    Raises ValueError with the settings under which ours would compute something else.
    """
    quantised = "num_vq_embeddings" in config
    given = given_settings(config, VQ_FIXED if quantised else KL_FIXED)
    widths, z_channels = needed(given, "block_out_channels"), number(given, "latent_channels")
    shape = (widths[0], [width // widths[0] for width in widths], number(given, "layers_per_block"))
    places: dict[str, Any] = {
        "in_channels": number(given, "in_channels"),
        "attention_levels": [i for i, kind in enumerate(needed(given, "down_block_types")) if "Attn" in kind],
        "middle_attention": given["mid_block_add_attention"],
    }
    model: AutoencoderKL | AutoencoderVQ
    if quantised:
        given["vq_embed_dim"] = z_channels if given["vq_embed_dim"] is None else given["vq_embed_dim"]
        model = AutoencoderVQ(*shape, given["vq_embed_dim"], given["num_vq_embeddings"], z_channels, **places)
    else:
        model = AutoencoderKL(*shape, z_channels, **places)
    check_same(given, autoencoder_config(model, number(given, "scaling_factor")))
    return model, given["scaling_factor"]


def _width(level: Level) -> int:
    block = level.blocks[0]
    assert isinstance(block, ResidualBlock)
    return block.conv_1.out_channels
