"""Where each of our weights lies in the state dicts of diffusers' models."""

from collections.abc import Iterator

from torch import nn

from models.attention import SelfAttentionBlock, SpatialTransformer
from models.autoencoder import Autoencoder, AutoencoderVQ
from models.autoencoder_layers import Attention
from models.conditioners.text_transformer import TextTransformer
from models.interop.compvis_names import TRANSFORMER_BLOCK  # diffusers kept those names
from models.interop.layers import Layer, nested
from models.unet import UNet
from models.unet_layers import Downsample, ResidualBlock, Stage

UNET_RESIDUAL = (
    Layer("norm_1", ("norm1",)),
    Layer("conv_1", ("conv1",)),
    Layer("embedding", ("time_emb_proj",)),
    Layer("norm_2", ("norm2",)),
    Layer("conv_2", ("conv2",)),
    Layer("skip", ("conv_shortcut",)),
)
SPATIAL_TRANSFORMER = (
    Layer("norm", ("norm",)),
    Layer("project_in", ("proj_in",), ones=2),
    Layer("project_out", ("proj_out",), ones=2),
)
TEXT_BLOCK = (
    Layer("norm_1", ("self_attn_layer_norm",)),
    Layer("attention.query", ("self_attn.q_proj",)),
    Layer("attention.key_value", ("self_attn.k_proj", "self_attn.v_proj")),
    Layer("attention.out", ("self_attn.out_proj",)),
    Layer("norm_2", ("final_layer_norm",)),
    Layer("expand", ("fc1",)),
    Layer("out", ("fc2",)),
)
AUTOENCODER_RESIDUAL = tuple(layer for layer in UNET_RESIDUAL if layer.ours != "embedding")
AUTOENCODER_ATTENTION = (
    Layer("norm", ("group_norm",)),
    Layer("query", ("to_q",), ones=-2),
    Layer("key", ("to_k",), ones=-2),
    Layer("value", ("to_v",), ones=-2),
    Layer("out", ("to_out.0",), ones=-2),
)


def _attention(ours: str, theirs: str, attention: nn.Module) -> Iterator[Layer]:
    if isinstance(attention, SpatialTransformer):
        yield from nested(ours, theirs, SPATIAL_TRANSFORMER)
        for i in range(len(attention.blocks)):
            yield from nested(f"{ours}.blocks.{i}", f"{theirs}.transformer_blocks.{i}", TRANSFORMER_BLOCK)
    elif isinstance(attention, SelfAttentionBlock):
        yield Layer(f"{ours}.norm", (f"{theirs}.group_norm",))
        parts = tuple(f"{theirs}.{part}" for part in ("to_q", "to_k", "to_v"))
        yield Layer(f"{ours}.qkv", parts, groups=attention.heads)
        yield Layer(f"{ours}.out", (f"{theirs}.to_out.0",))


def _stage(ours: str, theirs: str, number: int, stage: Stage) -> Iterator[Layer]:
    """A residual block with its attention; number: its place among those of its level."""
    yield from nested(f"{ours}.residual", f"{theirs}.resnets.{number}", UNET_RESIDUAL)
    if stage.attention is not None:
        yield from _attention(f"{ours}.attention", f"{theirs}.attentions.{number}", stage.attention)


def unet_names(model: UNet) -> Iterator[Layer]:
    """Pairs of our layers and those of UNet2DConditionModel, or of UNet2DModel for a UNet without context."""
    yield Layer("time_embedding.linear_1", ("time_embedding.linear_1",))
    yield Layer("time_embedding.linear_2", ("time_embedding.linear_2",))
    if model.classes is not None:
        yield Layer("time_embedding.classes", ("class_embedding",))
    yield Layer("stem", ("conv_in",))
    level = number = 0
    for i, stage in enumerate(model.down):
        ours, theirs = f"down.{i}", f"down_blocks.{level}"
        if isinstance(stage, Stage) and stage.residual.resize is None:
            yield from _stage(ours, theirs, number, stage)
            number += 1
            continue
        if isinstance(stage, Downsample):
            yield Layer(f"{ours}.conv", (f"{theirs}.downsamplers.0.conv",))
        else:
            yield from nested(f"{ours}.residual", f"{theirs}.downsamplers.0", UNET_RESIDUAL)
        level, number = level + 1, 0
    for i, stage in enumerate(model.middle):
        assert isinstance(stage, Stage)
        yield from _stage(f"middle.{i}", "mid_block", i, stage)
    level = number = 0
    for i, stage in enumerate(model.up):
        assert isinstance(stage, Stage)
        ours, theirs = f"up.{i}", f"up_blocks.{level}"
        yield from _stage(ours, theirs, number, stage)
        number += 1
        if stage.resize is None:
            continue
        if isinstance(stage.resize, ResidualBlock):
            yield from nested(f"{ours}.resize", f"{theirs}.upsamplers.0", UNET_RESIDUAL)
        else:
            yield Layer(f"{ours}.resize.conv", (f"{theirs}.upsamplers.0.conv",))
        level, number = level + 1, 0
    yield Layer("norm", ("conv_norm_out",))
    yield Layer("head", ("conv_out",))


def _half(model: nn.Module, half: str, blocks: str, resize: str) -> Iterator[Layer]:
    """The encoder or the decoder; blocks, resize: what its levels and their ends are called."""
    yield Layer(f"{half}.stem", (f"{half}.conv_in",))
    yield Layer(f"{half}.norm", (f"{half}.conv_norm_out",))
    yield Layer(f"{half}.head", (f"{half}.conv_out",))
    for ours, number in (("0", 0), ("2", 1)):
        yield from nested(f"{half}.middle.{ours}", f"{half}.mid_block.resnets.{number}", AUTOENCODER_RESIDUAL)
    if isinstance(model.get_submodule(f"{half}.middle.1"), Attention):
        yield from nested(f"{half}.middle.1", f"{half}.mid_block.attentions.0", AUTOENCODER_ATTENTION)
    levels = model.get_submodule(f"{half}.levels")
    for i, _ in enumerate(levels.children()):
        ours, theirs = f"{half}.levels.{i}", f"{half}.{blocks}.{i}"
        for j, attention in enumerate(model.get_submodule(f"{ours}.attentions").children()):
            yield from nested(f"{ours}.blocks.{j}", f"{theirs}.resnets.{j}", AUTOENCODER_RESIDUAL)
            if isinstance(attention, Attention):
                yield from nested(f"{ours}.attentions.{j}", f"{theirs}.attentions.{j}", AUTOENCODER_ATTENTION)
        if not isinstance(model.get_submodule(f"{ours}.resize"), nn.Identity):
            yield Layer(f"{ours}.resize.conv", (f"{theirs}.{resize}.0.conv",))


def autoencoder_names(model: Autoencoder) -> Iterator[Layer]:
    """Pairs of our layers and those of diffusers' AutoencoderKL, or of VQModel."""
    yield from _half(model, "encoder", "down_blocks", "downsamplers")
    yield from _half(model, "decoder", "up_blocks", "upsamplers")
    yield Layer("to_moments", ("quant_conv",))
    yield Layer("from_latent", ("post_quant_conv",))
    if isinstance(model, AutoencoderVQ):
        yield Layer("codebook.entries", ("quantize.embedding",))


def text_names(model: TextTransformer) -> Iterator[Layer]:
    """Pairs of our layers and those of LDMBertModel."""
    yield Layer("tokens", ("model.embed_tokens",))
    yield Layer("positions", ("model.embed_positions",))
    for i in range(len(model.blocks)):
        yield from nested(f"blocks.{i}", f"model.layers.{i}", TEXT_BLOCK)
    yield Layer("norm", ("model.layer_norm",))
