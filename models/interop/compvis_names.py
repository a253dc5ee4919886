"""Where each of our weights lies in the published state dicts (the CompVis latent-diffusion format)."""

from collections.abc import Iterator
from itertools import count

from torch import nn

from models.attention import SelfAttentionBlock, SpatialTransformer
from models.autoencoder import Autoencoder, AutoencoderVQ
from models.autoencoder_layers import Attention, Downsample, Upsample
from models.conditioners import Conditioner
from models.conditioners.class_label import ClassLabel
from models.conditioners.class_token import ClassToken
from models.conditioners.clip_text import ClipText
from models.conditioners.image import Image
from models.conditioners.masked_image import MaskedImage
from models.conditioners.spatial import SpatialRescaler
from models.conditioners.text_transformer import TextTransformer
from models.interop.layers import Layer, nested, same_names
from models.unet import UNet
from models.unet_layers import Downsample as UNetDownsample
from models.unet_layers import ResidualBlock, Stage

UNET_RESIDUAL = (
    Layer("norm_1", ("in_layers.0",)),
    Layer("conv_1", ("in_layers.2",)),
    Layer("embedding", ("emb_layers.1",)),
    Layer("norm_2", ("out_layers.0",)),
    Layer("conv_2", ("out_layers.3",)),
    Layer("skip", ("skip_connection",)),
)
SELF_ATTENTION_BLOCK = (
    Layer("norm", ("norm",)),
    Layer("qkv", ("qkv",), ones=1),
    Layer("out", ("proj_out",), ones=1),
)
SPATIAL_TRANSFORMER = (
    Layer("norm", ("norm",)),
    Layer("project_in", ("proj_in",), ones=2),
    Layer("project_out", ("proj_out",), ones=2),
)
TRANSFORMER_BLOCK = (
    Layer("norm_1", ("norm1",)),
    Layer("self_attention.query", ("attn1.to_q",)),
    Layer("self_attention.key_value", ("attn1.to_k", "attn1.to_v")),
    Layer("self_attention.out", ("attn1.to_out.0",)),
    Layer("norm_2", ("norm2",)),
    Layer("cross_attention.query", ("attn2.to_q",)),
    Layer("cross_attention.key_value", ("attn2.to_k", "attn2.to_v")),
    Layer("cross_attention.out", ("attn2.to_out.0",)),
    Layer("norm_3", ("norm3",)),
    Layer("feed_forward.expand", ("ff.net.0.proj",)),
    Layer("feed_forward.out", ("ff.net.2",)),
)
TEXT_ATTENTION = (
    Layer("norm_1", ("0",)),
    Layer("attention.query", ("1.to_q",)),
    Layer("attention.key_value", ("1.to_k", "1.to_v")),
    Layer("attention.out", ("1.to_out",)),
)
TEXT_FEED_FORWARD = (Layer("norm_2", ("0",)), Layer("expand", ("1.net.0.0",)), Layer("out", ("1.net.2",)))
AUTOENCODER_RESIDUAL = (
    Layer("norm_1", ("norm1",)),
    Layer("conv_1", ("conv1",)),
    Layer("norm_2", ("norm2",)),
    Layer("conv_2", ("conv2",)),
    Layer("skip", ("nin_shortcut",)),
)
AUTOENCODER_ATTENTION = (
    Layer("norm", ("norm",)),
    Layer("query", ("q",)),
    Layer("key", ("k",)),
    Layer("value", ("v",)),
    Layer("out", ("proj_out",)),
)

CONDITIONER_TEXT = "transformer."  # what a text encoder's names begin with, below `cond_stage_model.`


def _attention(ours: str, theirs: str, attention: nn.Module) -> Iterator[Layer]:
    if isinstance(attention, SpatialTransformer):
        yield from nested(ours, theirs, SPATIAL_TRANSFORMER)
        for i in range(len(attention.blocks)):
            yield from nested(f"{ours}.blocks.{i}", f"{theirs}.transformer_blocks.{i}", TRANSFORMER_BLOCK)
    elif isinstance(attention, SelfAttentionBlock):
        yield from nested(ours, theirs, SELF_ATTENTION_BLOCK)


def _stage(ours: str, theirs: str, stage: nn.Module, positions: Iterator[int]) -> Iterator[Layer]:
    """A published block is a sequence without empty places: its members' positions are counted off."""
    if isinstance(stage, UNetDownsample):
        yield Layer(f"{ours}.conv", (f"{theirs}.{next(positions)}.op",))
        return
    assert isinstance(stage, Stage)
    yield from nested(f"{ours}.residual", f"{theirs}.{next(positions)}", UNET_RESIDUAL)
    if stage.attention is not None:
        yield from _attention(f"{ours}.attention", f"{theirs}.{next(positions)}", stage.attention)
    if isinstance(stage.resize, ResidualBlock):
        yield from nested(f"{ours}.resize", f"{theirs}.{next(positions)}", UNET_RESIDUAL)
    elif stage.resize is not None:
        yield Layer(f"{ours}.resize.conv", (f"{theirs}.{next(positions)}.conv",))


def unet_names(model: UNet) -> Iterator[Layer]:
    """Pairs of our and published layers of a UNet, below `model.diffusion_model.`."""
    yield Layer("time_embedding.linear_1", ("time_embed.0",))
    yield Layer("time_embedding.linear_2", ("time_embed.2",))
    if model.classes is not None:
        yield Layer("time_embedding.classes", ("label_emb",))
    yield Layer("stem", ("input_blocks.0.0",))
    for i, stage in enumerate(model.down):
        yield from _stage(f"down.{i}", f"input_blocks.{i + 1}", stage, count())
    positions = count()  # the middle is one published block
    for i, stage in enumerate(model.middle):
        yield from _stage(f"middle.{i}", "middle_block", stage, positions)
    for i, stage in enumerate(model.up):
        yield from _stage(f"up.{i}", f"output_blocks.{i}", stage, count())
    yield Layer("norm", ("out.0",))
    yield Layer("head", ("out.2",))


def _half(model: nn.Module, half: str, levels: str, numbers: range) -> Iterator[Layer]:
    """The encoder or decoder; numbers: the published number of each of its levels, in our order."""
    yield Layer(f"{half}.stem", (f"{half}.conv_in",))
    yield Layer(f"{half}.norm", (f"{half}.norm_out",))
    yield Layer(f"{half}.head", (f"{half}.conv_out",))
    for ours, theirs in (("0", "block_1"), ("2", "block_2")):
        yield from nested(f"{half}.middle.{ours}", f"{half}.mid.{theirs}", AUTOENCODER_RESIDUAL)
    if isinstance(model.get_submodule(f"{half}.middle.1"), Attention):
        yield from nested(f"{half}.middle.1", f"{half}.mid.attn_1", AUTOENCODER_ATTENTION)
    for i, number in enumerate(numbers):
        ours, theirs = f"{half}.levels.{i}", f"{half}.{levels}.{number}"
        for j, _ in enumerate(model.get_submodule(f"{ours}.blocks").children()):
            yield from nested(f"{ours}.blocks.{j}", f"{theirs}.block.{j}", AUTOENCODER_RESIDUAL)
            if isinstance(model.get_submodule(f"{ours}.attentions.{j}"), Attention):
                yield from nested(f"{ours}.attentions.{j}", f"{theirs}.attn.{j}", AUTOENCODER_ATTENTION)
        resize = model.get_submodule(f"{ours}.resize")
        if isinstance(resize, Downsample):
            yield Layer(f"{ours}.resize.conv", (f"{theirs}.downsample.conv",))
        elif isinstance(resize, Upsample):
            yield Layer(f"{ours}.resize.conv", (f"{theirs}.upsample.conv",))


def autoencoder_names(model: Autoencoder) -> Iterator[Layer]:
    """Pairs of our and published layers of a first stage, below `first_stage_model.`."""
    levels = len(model.encoder.levels)
    yield from _half(model, "encoder", "down", range(levels))
    yield from _half(model, "decoder", "up", range(levels - 1, -1, -1))
    yield Layer("to_moments", ("quant_conv",))
    yield Layer("from_latent", ("post_quant_conv",))
    if isinstance(model, AutoencoderVQ):
        yield Layer("codebook.entries", ("quantize.embedding",))


def text_names(model: TextTransformer) -> Iterator[Layer]:
    """Pairs of our and published layers of the text transformer, below `cond_stage_model.transformer.`."""
    yield Layer("tokens", ("token_emb",))
    yield Layer("positions", ("pos_emb.emb",))
    for i in range(len(model.blocks)):
        yield from nested(f"blocks.{i}", f"attn_layers.layers.{2 * i}", TEXT_ATTENTION)
        yield from nested(f"blocks.{i}", f"attn_layers.layers.{2 * i + 1}", TEXT_FEED_FORWARD)
    yield Layer("norm", ("norm",))


def conditioner_names(conditioner: Conditioner) -> Iterator[Layer] | None:
    """Pairs of our and published layers of a conditioner, below `cond_stage_model.`; None if it has no weights there.

    Raises ValueError for a conditioner that no published model has.
    """
    if isinstance(conditioner, TextTransformer):
        layers = text_names(conditioner)
        return (layer._replace(theirs=tuple(CONDITIONER_TEXT + path for path in layer.theirs)) for layer in layers)
    if isinstance(conditioner, ClipText):
        return same_names(conditioner.encoder, "encoder", f"{CONDITIONER_TEXT}text_model")
    if isinstance(conditioner, ClassToken):
        return iter([Layer("embedding", ("embedding",))])
    if isinstance(conditioner, SpatialRescaler):
        return iter([Layer("mix", ("channel_mapper",))])
    if isinstance(conditioner, ClassLabel | Image | MaskedImage):  # a masked image is encoded by the first stage
        return None
    raise ValueError(f"{type(conditioner).__name__}: no published model has such a conditioner")
