"""Where each of our weights lies in the published state dicts (the CompVis latent-diffusion format)."""

from collections.abc import Iterator, Mapping
from itertools import count

from torch import nn

from models.attention import SelfAttentionBlock, SpatialTransformer
from models.autoencoder import Autoencoder, AutoencoderVQ
from models.autoencoder_layers import Attention, Downsample, Upsample
from models.conditioners.text_transformer import TextTransformer
from models.unet import Downsample as UNetDownsample
from models.unet import ResidualBlock, Stage, UNet

Names = Iterator[tuple[str, tuple[str, ...]]]
"""Pairs: path of one of our layers, and of the published layers that make it up, joined by rows."""

Table = Mapping[str, tuple[str, ...]]

UNET_RESIDUAL: Table = {
    "norm_1": ("in_layers.0",),
    "conv_1": ("in_layers.2",),
    "embedding": ("emb_layers.1",),
    "norm_2": ("out_layers.0",),
    "conv_2": ("out_layers.3",),
    "skip": ("skip_connection",),
}
SELF_ATTENTION_BLOCK: Table = {"norm": ("norm",), "qkv": ("qkv",), "out": ("proj_out",)}
SPATIAL_TRANSFORMER: Table = {"norm": ("norm",), "project_in": ("proj_in",), "project_out": ("proj_out",)}
TRANSFORMER_BLOCK: Table = {
    "norm_1": ("norm1",),
    "self_attention.query": ("attn1.to_q",),
    "self_attention.key_value": ("attn1.to_k", "attn1.to_v"),
    "self_attention.out": ("attn1.to_out.0",),
    "norm_2": ("norm2",),
    "cross_attention.query": ("attn2.to_q",),
    "cross_attention.key_value": ("attn2.to_k", "attn2.to_v"),
    "cross_attention.out": ("attn2.to_out.0",),
    "norm_3": ("norm3",),
    "feed_forward.expand": ("ff.net.0.proj",),
    "feed_forward.out": ("ff.net.2",),
}
TEXT_ATTENTION: Table = {
    "norm_1": ("0",),
    "attention.query": ("1.to_q",),
    "attention.key_value": ("1.to_k", "1.to_v"),
    "attention.out": ("1.to_out",),
}
TEXT_FEED_FORWARD: Table = {"norm_2": ("0",), "expand": ("1.net.0.0",), "out": ("1.net.2",)}
AUTOENCODER_RESIDUAL: Table = {
    "norm_1": ("norm1",),
    "conv_1": ("conv1",),
    "norm_2": ("norm2",),
    "conv_2": ("conv2",),
    "skip": ("nin_shortcut",),
}
AUTOENCODER_ATTENTION: Table = {
    "norm": ("norm",),
    "query": ("q",),
    "key": ("k",),
    "value": ("v",),
    "out": ("proj_out",),
}


def _layers(ours: str, theirs: str, table: Table) -> Names:
    for layer, published in table.items():
        yield f"{ours}.{layer}", tuple(f"{theirs}.{path}" for path in published)


def _attention(ours: str, theirs: str, attention: nn.Module) -> Names:
    if isinstance(attention, SpatialTransformer):
        yield from _layers(ours, theirs, SPATIAL_TRANSFORMER)
        for i in range(len(attention.blocks)):
            yield from _layers(f"{ours}.blocks.{i}", f"{theirs}.transformer_blocks.{i}", TRANSFORMER_BLOCK)
    elif isinstance(attention, SelfAttentionBlock):
        yield from _layers(ours, theirs, SELF_ATTENTION_BLOCK)


def _stage(ours: str, theirs: str, stage: nn.Module, positions: Iterator[int]) -> Names:
    """A published block is a sequence without empty places: its members' positions are counted off."""
    if isinstance(stage, UNetDownsample):
        yield f"{ours}.conv", (f"{theirs}.{next(positions)}.op",)
        return
    assert isinstance(stage, Stage)
    yield from _layers(f"{ours}.residual", f"{theirs}.{next(positions)}", UNET_RESIDUAL)
    if stage.attention is not None:
        yield from _attention(f"{ours}.attention", f"{theirs}.{next(positions)}", stage.attention)
    if isinstance(stage.resize, ResidualBlock):
        yield from _layers(f"{ours}.resize", f"{theirs}.{next(positions)}", UNET_RESIDUAL)
    elif stage.resize is not None:
        yield f"{ours}.resize.conv", (f"{theirs}.{next(positions)}.conv",)


def unet_names(model: UNet) -> Names:
    """Pairs of our and published layers of a UNet, below `model.diffusion_model.`."""
    yield "time_embedding.linear_1", ("time_embed.0",)
    yield "time_embedding.linear_2", ("time_embed.2",)
    yield "stem", ("input_blocks.0.0",)
    for i, stage in enumerate(model.down):
        yield from _stage(f"down.{i}", f"input_blocks.{i + 1}", stage, count())
    positions = count()  # the middle is one published block
    for i, stage in enumerate(model.middle):
        yield from _stage(f"middle.{i}", "middle_block", stage, positions)
    for i, stage in enumerate(model.up):
        yield from _stage(f"up.{i}", f"output_blocks.{i}", stage, count())
    yield "norm", ("out.0",)
    yield "head", ("out.2",)


def _half(model: nn.Module, half: str, levels: str, numbers: range) -> Names:
    """The encoder or decoder; numbers: the published number of each of its levels, in our order."""
    yield f"{half}.stem", (f"{half}.conv_in",)
    yield f"{half}.norm", (f"{half}.norm_out",)
    yield f"{half}.head", (f"{half}.conv_out",)
    for ours, theirs in (("0", "block_1"), ("2", "block_2")):
        yield from _layers(f"{half}.middle.{ours}", f"{half}.mid.{theirs}", AUTOENCODER_RESIDUAL)
    if isinstance(model.get_submodule(f"{half}.middle.1"), Attention):
        yield from _layers(f"{half}.middle.1", f"{half}.mid.attn_1", AUTOENCODER_ATTENTION)
    for i, number in enumerate(numbers):
        ours, theirs = f"{half}.levels.{i}", f"{half}.{levels}.{number}"
        for j, _ in enumerate(model.get_submodule(f"{ours}.blocks").children()):
            yield from _layers(f"{ours}.blocks.{j}", f"{theirs}.block.{j}", AUTOENCODER_RESIDUAL)
            if isinstance(model.get_submodule(f"{ours}.attentions.{j}"), Attention):
                yield from _layers(f"{ours}.attentions.{j}", f"{theirs}.attn.{j}", AUTOENCODER_ATTENTION)
        resize = model.get_submodule(f"{ours}.resize")
        if isinstance(resize, Downsample):
            yield f"{ours}.resize.conv", (f"{theirs}.downsample.conv",)
        elif isinstance(resize, Upsample):
            yield f"{ours}.resize.conv", (f"{theirs}.upsample.conv",)


def autoencoder_names(model: Autoencoder) -> Names:
    """Pairs of our and published layers of a first stage, below `first_stage_model.`."""
    levels = len(model.encoder.levels)
    yield from _half(model, "encoder", "down", range(levels))
    yield from _half(model, "decoder", "up", range(levels - 1, -1, -1))
    yield "to_moments", ("quant_conv",)
    yield "from_latent", ("post_quant_conv",)
    if isinstance(model, AutoencoderVQ):
        yield "codebook.entries", ("quantize.embedding",)


def text_names(model: TextTransformer) -> Names:
    """Pairs of our and published layers of the text transformer, below `cond_stage_model.transformer.`."""
    yield "tokens", ("token_emb",)
    yield "positions", ("pos_emb.emb",)
    for i in range(len(model.blocks)):
        yield from _layers(f"blocks.{i}", f"attn_layers.layers.{2 * i}", TEXT_ATTENTION)
        yield from _layers(f"blocks.{i}", f"attn_layers.layers.{2 * i + 1}", TEXT_FEED_FORWARD)
    yield "norm", ("norm",)
