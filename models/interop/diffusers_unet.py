"""Configurations of diffusers' UNets, and the same UNets of ours; each way gives exactly the same network.

A configuration says everything that its class takes, so that no default over there matters.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from models.attention import SelfAttentionBlock, SpatialTransformer, TransformerBlock
from models.interop.diffusers_settings import (
    Config,
    check_same,
    given_settings,
    group_count,
    level_widths,
    needed,
    number,
    one_number,
)
from models.unet import UNet
from models.unet_layers import Stage

UNET_FIXED: Config = {
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_eps": 1e-5,
    "class_embed_type": None,
    "num_class_embeds": None,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
}
CONDITIONAL_FIXED: Config = {
    **UNET_FIXED,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "use_linear_projection": False,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "addition_embed_type_num_heads": 64,
    "upcast_attention": False,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "projection_class_embeddings_input_dim": None,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
}
UNCONDITIONAL_FIXED: Config = {
    **UNET_FIXED,
    "mid_block_type": "UNetMidBlock2D",
    "add_attention": True,
    "num_train_timesteps": None,
}


def unet_config(model: UNet) -> Config:
    """Settings of the UNet2DConditionModel, or UNet2DModel without context, that computes what this UNet does.

    Raises ValueError, naming the setting, when there is none.
    """
    levels = _levels(model)
    residuals = [stage.residual for stages in levels for stage in stages]
    attentions = [[stage.attention for stage in stages if stage.attention is not None] for stages in levels]
    middle = model.middle[0]
    assert isinstance(middle, Stage)
    in_blocks = any(stage.residual.resize == "down" for stage in model.down if isinstance(stage, Stage))
    channels = level_widths(model.stem.out_channels, [stages[0].residual.conv_1.out_channels for stages in levels])
    shared = {
        "in_channels": model.in_channels,
        "out_channels": model.head.out_channels,
        "block_out_channels": channels,
        "layers_per_block": len(levels[0]),
        "norm_num_groups": group_count(model),
        "dropout": residuals[0].dropout.p,
        "num_class_embeds": model.classes,
        "resnet_time_scale_shift": "scale_shift" if residuals[0].scale_shift_norm else "default",
    }
    if model.context_width is None:
        return {
            "_class_name": "UNet2DModel",
            **UNCONDITIONAL_FIXED,
            **shared,
            **_block_types("Attn", [bool(found) for found in attentions], in_blocks),
            "downsample_type": "resnet" if in_blocks else "conv",
            "upsample_type": "resnet" if in_blocks else "conv",
            "attention_head_dim": _head_width([middle.attention, *(block for found in attentions for block in found)]),
            "attn_norm_num_groups": shared["norm_num_groups"],
        }
    if in_blocks:
        raise ValueError("resblock_updown=true with a context: diffusers has no such UNet")
    assert isinstance(middle.attention, SpatialTransformer)
    heads = [_heads(found[0] if found else middle.attention) for found in attentions]
    return {
        "_class_name": "UNet2DConditionModel",
        **CONDITIONAL_FIXED,
        **shared,
        **_block_types("CrossAttn", [bool(found) for found in attentions], in_blocks),
        "cross_attention_dim": model.context_width,
        "transformer_layers_per_block": len(middle.attention.blocks),
        # The number of heads; it is called so for the sake of old files.
        "attention_head_dim": one_number(heads),
    }


def build_unet(config: Mapping[str, Any]) -> UNet:
    """Our UNet of the settings of a UNet2DConditionModel or UNet2DModel.

    Raises ValueError with the settings under which ours would compute something else.
    """
    conditional = "cross_attention_dim" in config
    fixed = CONDITIONAL_FIXED if conditional else UNCONDITIONAL_FIXED
    given = given_settings(config, fixed)
    if not conditional and given["attn_norm_num_groups"] is None and given["resnet_time_scale_shift"] == "default":
        given["attn_norm_num_groups"] = given.get("norm_num_groups")
    for key in ("layers_per_block", "transformer_layers_per_block", *(["cross_attention_dim"] if conditional else [])):
        given[key] = number(given, key)
    widths = needed(given, "block_out_channels")
    attending = ["Attn" in kind for kind in needed(given, "down_block_types")]
    heads, head_channels = _head_settings(needed(given, "attention_head_dim"), widths, attending, conditional)
    model = UNet(
        in_channels=number(given, "in_channels"),
        out_channels=number(given, "out_channels"),
        channels=widths[0],
        channel_multipliers=[width // widths[0] for width in widths],
        residual_blocks=given["layers_per_block"],
        attention_downsamplings=[2**i for i, there in enumerate(attending) if there],
        heads=heads,
        head_channels=head_channels,
        context_width=given.get("cross_attention_dim"),
        transformer_depth=given["transformer_layers_per_block"],
        resblock_updown=not conditional and given["downsample_type"] == "resnet",
        scale_shift_norm=given["resnet_time_scale_shift"] == "scale_shift",
        classes=given["num_class_embeds"],
        dropout=given["dropout"],
    )
    if conditional:  # levels without attention may say anything
        given["attention_head_dim"] = unet_config(model)["attention_head_dim"]
    check_same(given, unet_config(model))
    return model


def _levels(model: UNet) -> list[list[Stage]]:
    """The UNet's residual blocks with their attention on the way down, level by level."""
    levels: list[list[Stage]] = [[]]
    for stage in model.down:
        if isinstance(stage, Stage) and stage.residual.resize is None:
            levels[-1].append(stage)
        else:
            levels.append([])
    return levels


def _block_types(kind: str, attending: Sequence[bool], in_blocks: bool) -> Config:
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if in_blocks else ("DownBlock2D", "UpBlock2D")
    return {
        "down_block_types": [f"{kind}DownBlock2D" if there else plain[0] for there in attending],
        "up_block_types": [f"{kind}UpBlock2D" if there else plain[1] for there in reversed(attending)],
    }


def _heads(attention: nn.Module) -> int:
    assert isinstance(attention, SpatialTransformer)
    block = attention.blocks[0]
    assert isinstance(block, TransformerBlock)
    return block.self_attention.heads


def _head_settings(
    given: Any, widths: list[int], attending: list[bool], conditional: bool
) -> tuple[int | None, int | None]:
    """heads and head_channels of our UNet, one of them None. given: attention_head_dim."""
    if not conditional:
        if not isinstance(given, int):
            raise ValueError(f"attention_head_dim={given}: only one width of heads can be imported")
        return None, given
    counts = [given] * len(widths) if isinstance(given, int) else given
    there = [*attending[:-1], True]  # the middle has attention by the last level's number
    found = {(count, width // count) for count, width, here in zip(counts, widths, there, strict=True) if here}
    heads, head_channels = ({pair[i] for pair in found} for i in (0, 1))
    if len(heads) == 1:
        return heads.pop(), None
    if len(head_channels) == 1:
        return None, head_channels.pop()
    raise ValueError(f"attention_head_dim={given}: only one number of heads, or one width of heads, can be imported")


def _head_width(attentions: Iterable[nn.Module | None]) -> int:
    blocks = [block for block in attentions if isinstance(block, SelfAttentionBlock)]
    widths = {block.norm.num_channels // block.heads for block in blocks}
    if len(widths) > 1:
        raise ValueError(
            f"heads of {sorted(widths)} channels: UNet2DModel has one width for all heads; only a UNet with "
            "head_channels, or without context at one width, can be exported"
        )
    return widths.pop()
