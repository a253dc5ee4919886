"""Attention layers: cross-attention, gated feed-forward, spatial transformer, plain self-attention block."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.gated import GatedLinear
from models.layers import Linear
from models.normalisation import group_norm


def zeroed(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """The same layer with weight and bias set to zero, so that a residual branch starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def to_tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H*W, C]; a view, and contiguous when x is channels_last."""
    return x.flatten(2).transpose(1, 2)


def to_image(tokens: Tensor, height: int, width: int) -> Tensor:
    """[B, H*W, C] -> [B, C, H, W]; a view in channels_last order when tokens are contiguous."""
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def head_count(width: int, heads: int | None, head_channels: int | None) -> int:
    """Attention heads of a layer, from a fixed number of heads or a fixed width of each.

    Raises ValueError unless exactly one is given and divides the layer's width.
    """
    if (heads is None) == (head_channels is None):
        raise ValueError(f"heads={heads}, head_channels={head_channels}: give exactly one of the two")
    divisor = heads if heads is not None else head_channels
    assert divisor is not None
    if divisor < 1 or width % divisor:
        raise ValueError(
            f"heads={heads}, head_channels={head_channels}: must divide the layer's width {width}; "
            "choose a divisor of every attending layer's width"
        )
    return divisor if heads is not None else width // divisor


class ReadOnce:
    """A context whose keys and values each layer computes once: for the many steps of one sampling.

    context: float [B, L, D]. The layers' weights mustn't change while it is in use.
    """

    def __init__(self, context: Tensor) -> None:
        self.context = context
        self.shape = context.shape
        self._found: dict[nn.Module, Tensor] = {}

    def through(self, layer: nn.Module) -> Tensor:
        """layer(context), computed at the first call."""
        if layer not in self._found:
            self._found[layer] = layer(self.context)
        return self._found[layer]


class Attention(nn.Module):
    """Multi-head attention of x to a context, or to itself; biases only in the output (LDM Sec. 3.3).

    width: of x. context_width: of the context; width for self-attention. heads x head_width: inner width.
    """

    def __init__(self, width: int, context_width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, heads * head_width, bias=False)
        # Keys and values share their input: one matrix product instead of two.
        self.key_value = Linear(context_width, 2 * heads * head_width, bias=False)
        self.out = Linear(heads * head_width, width)

    def forward(self, x: Tensor, context: Tensor | ReadOnce) -> Tensor:
        """x [B, N, width], context [B, M, context_width] -> [B, N, width]."""
        read = context.through(self.key_value) if isinstance(context, ReadOnce) else self.key_value(context)
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, head_width]
        k, v = (
            half.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, M, head_width]
            for half in read.chunk(2, dim=-1)
        )
        h = F.scaled_dot_product_attention(q, k, v)  # [B, heads, N, head_width]
        return self.out(h.transpose(1, 2).flatten(2))


class GatedFeedForward(nn.Module):
    """GEGLU feed-forward with a hidden width of 4 x width (Shazeer 2020, "GEGLU"). [B, N, width] -> same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = Linear(width, 8 * width)
        self.out = GatedLinear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.expand(x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward; each normalised first and added to its input."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.self_attention = Attention(width, width, heads, width // heads)
        self.norm_2 = nn.LayerNorm(width)
        self.cross_attention = Attention(width, context_width, heads, width // heads)
        self.norm_3 = nn.LayerNorm(width)
        self.feed_forward = GatedFeedForward(width)

    def forward(self, x: Tensor, context: Tensor | ReadOnce) -> Tensor:
        """x [B, N, width], context [B, L, context_width] -> [B, N, width]."""
        h = self.norm_1(x)  # [B, N, width]
        x = x + self.self_attention(h, h)
        x = x + self.cross_attention(self.norm_2(x), context)
        return x + self.feed_forward(self.norm_3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a feature map, attending to a context (LDM App. E.2.1).

    Adds nothing at first: its last projection starts at zero.
    """

    def __init__(self, channels: int, context_width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, 1e-6)
        # Linear over tokens is the same map as a 1 x 1 convolution over positions, without a transpose.
        self.project_in = Linear(channels, channels)
        self.blocks = nn.ModuleList(TransformerBlock(channels, context_width, heads) for _ in range(depth))
        self.project_out = zeroed(Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor | ReadOnce) -> Tensor:
        """x [B, C, H, W], context [B, L, context_width] -> [B, C, H, W]."""
        h = self.project_in(to_tokens(self.norm(x)))  # [B, H*W, C]
        for block in self.blocks:
            h = block(h, context)  # [B, H*W, C]
        return x + to_image(self.project_out(h), *x.shape[2:])


class SelfAttentionBlock(nn.Module):
    """Self-attention over the positions of a feature map, for UNets without context (ADM, Sec. 3).

    The rows of `qkv` run head by head, each head's queries, keys and values together.
    Adds nothing at first: its last projection starts at zero.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels, 1e-5)
        self.qkv = Linear(channels, 3 * channels)
        self.out = zeroed(Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor | ReadOnce | None) -> Tensor:
        """x [B, C, H, W] -> [B, C, H, W]. context is unused: both kinds of block are called alike."""
        h = self.qkv(to_tokens(self.norm(x)))  # [B, H*W, 3*C]
        q, k, v = (
            part.transpose(1, 2)  # [B, heads, H*W, C/heads]
            for part in h.unflatten(-1, (self.heads, -1)).chunk(3, dim=-1)
        )
        h = F.scaled_dot_product_attention(q, k, v)  # [B, heads, H*W, C/heads]
        return x + to_image(self.out(h.transpose(1, 2).flatten(2)), *x.shape[2:])
