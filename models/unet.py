"""The denoiser: a time-conditional UNet with attention (LDM Sec. 3.2, 3.3; ADM, Dhariwal & Nichol 2021)."""

from collections.abc import Collection, Sequence
from math import log
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.attention import ReadOnce, SelfAttentionBlock, SpatialTransformer, head_count, zeroed
from models.layers import Convolution3x3, Linear, UpsamplingConvolution
from models.normalisation import group_norm, normalised_silu

EPS = 1e-5  # of every normalisation but the spatial transformers'


def sinusoidal(t: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of t at width/2 frequencies from 1 to 1/10000: int64 [B] -> float32 [B, width]."""
    half = width // 2
    frequencies = torch.exp(-log(10_000.0) / half * torch.arange(half, device=t.device, dtype=torch.float32))
    angles = t[:, None].float() * frequencies  # [B, width/2]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """Timesteps, and classes where there are any, as the embedding that every residual block reads."""

    def __init__(self, channels: int, classes: int | None) -> None:
        super().__init__()
        self.channels = channels
        self.linear_1 = Linear(channels, 4 * channels)
        self.linear_2 = Linear(4 * channels, 4 * channels)
        self.classes = None if classes is None else nn.Embedding(classes, 4 * channels)

    def forward(self, t: Tensor, labels: Tensor | None) -> Tensor:
        """t, labels: int64 [B] -> SiLU-activated embedding [B, 4 * channels]."""
        h = sinusoidal(t, self.channels).to(self.linear_1.weight.dtype)  # [B, channels]
        h = self.linear_2(F.silu(self.linear_1(h)))  # [B, 4 * channels]
        if self.classes is not None:
            h = h + self.classes(labels)
        # Every reader begins with the same activation: it is done once, here.
        return F.silu(h)


class ResidualBlock(nn.Module):
    """Two pre-activated 3 x 3 convolutions with the time embedding between them, and a skip.

    resize: "down" (mean of 2 x 2) or "up" (nearest) inside the block, BigGAN's way. scale_shift_norm: the
    embedding scales and shifts the second normalisation instead of being added before it (ADM Sec. 3).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_width: int,
        dropout: float,
        scale_shift_norm: bool,
        resize: Literal["down", "up"] | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift_norm = scale_shift_norm
        self.resize = resize
        self.norm_1 = group_norm(in_channels, EPS)
        self.conv_1 = Convolution3x3(in_channels, out_channels)
        self.embedding = Linear(embedding_width, (2 if scale_shift_norm else 1) * out_channels)
        self.norm_2 = group_norm(out_channels, EPS)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = zeroed(Convolution3x3(out_channels, out_channels))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def _resized(self, x: Tensor) -> Tensor:
        if self.resize == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resize == "up" else x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x [B, C_in, H, W], embedding [B, E] (activated) -> [B, C_out, H', W']."""
        h = self.conv_1(self._resized(normalised_silu(self.norm_1, x)))  # [B, C_out, H', W']
        e = self.embedding(embedding)[:, :, None, None]  # [B, C_out or 2 * C_out, 1, 1]
        if self.scale_shift_norm:
            scale, shift = e.chunk(2, dim=1)  # each [B, C_out, 1, 1]
            h = self.norm_2(h) * (1 + scale) + shift
        else:
            h = self.norm_2(h + e)
        return self.conv_2(self.dropout(F.silu(h))).add_(self.skip(self._resized(x)))


class Downsample(nn.Module):
    """Strided 3 x 3 convolution. [B, C, H, W] -> [B, C, H/2, W/2]. Called like a Stage."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | ReadOnce | None) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest neighbour, then a 3 x 3 convolution. [B, C, H, W] -> [B, C, 2H, 2W]. embedding is unused."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = UpsamplingConvolution(channels, channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(x)


class Stage(nn.Module):
    """A residual block, then attention where the level has any, then a resize where the level ends."""

    def __init__(
        self, residual: ResidualBlock, attention: nn.Module | None = None, resize: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.residual = residual
        self.attention = attention
        self.resize = resize

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | ReadOnce | None) -> Tensor:
        """x [B, C_in, H, W], embedding [B, E], context [B, L, D] or None -> [B, C_out, H', W']."""
        x = self.residual(x, embedding)  # [B, C_out, H, W]
        if self.attention is not None:
            x = self.attention(x, context)  # [B, C_out, H, W]
        return x if self.resize is None else self.resize(x, embedding)


class UNet(nn.Module):
    """eps_theta(z_t, t, tau(y)) (LDM Eq. 2 and 3).

    channels: width at full latent resolution, times channel_multipliers[i] at level i, whose downsampling
    is 2**i. residual_blocks: a level on the way down; one more on the way up. attention_downsamplings:
    levels with attention, each by its downsampling; the middle always has it. Exactly one of heads (their
    number) and head_channels (their width). context_width: width of the context that spatial transformers
    of transformer_depth blocks attend to; None builds plain self-attention blocks. classes: how many are
    embedded and added to the timestep's embedding; None: no labels. resblock_updown: resize
    inside residual blocks (BigGAN). scale_shift_norm: see ResidualBlock; without it, levels of width 32
    can't see the time (group_norm says why). dropout: in residual blocks. activation_checkpointing: keep only
    what enters each stage, and compute the stage once more when its gradient is needed: less memory, a third more
    time.
    Raises ValueError for settings out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: int,
        channel_multipliers: Sequence[int],
        residual_blocks: int,
        attention_downsamplings: Collection[int],
        heads: int | None = None,
        head_channels: int | None = None,
        context_width: int | None = None,
        transformer_depth: int = 1,
        classes: int | None = None,
        resblock_updown: bool = False,
        scale_shift_norm: bool = False,
        dropout: float = 0.0,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        last = len(channel_multipliers) - 1
        known = [2**i for i in range(last + 1)]
        attending = set(attention_downsamplings)
        unknown = sorted(attending - set(known))
        if last < 0 or unknown:
            raise ValueError(
                f"channel_multipliers={list(channel_multipliers)}, attention_downsamplings has {unknown}: "
                f"give at least one multiplier, and downsamplings out of {known}"
            )
        if channels % 2:
            raise ValueError(f"channels={channels}: give an even number, half for sines, half for cosines")

        def residual(a: int, b: int, resize: Literal["down", "up"] | None = None) -> ResidualBlock:
            return ResidualBlock(a, b, 4 * channels, dropout, scale_shift_norm, resize)

        def attention(width: int) -> nn.Module:
            count = head_count(width, heads, head_channels)
            if context_width is None:
                return SelfAttentionBlock(width, count)
            return SpatialTransformer(width, context_width, count, transformer_depth)

        self.in_channels = in_channels
        self.out_channels = out_channels
        self.context_width = context_width
        self.classes = classes
        self.activation_checkpointing = activation_checkpointing
        self.stride = 2**last
        self.time_embedding = TimeEmbedding(channels, classes)
        self.stem = Convolution3x3(in_channels, channels)

        width = channels
        skips = [channels]  # widths of the feature maps that the way up reads again
        self.down = nn.ModuleList()
        for i, multiplier in enumerate(channel_multipliers):
            for _ in range(residual_blocks):
                block = residual(width, channels * multiplier)
                width = channels * multiplier
                self.down.append(Stage(block, attention(width) if 2**i in attending else None))
                skips.append(width)
            if i < last:
                shrink = Stage(residual(width, width, "down")) if resblock_updown else Downsample(width)
                self.down.append(shrink)
                skips.append(width)

        self.middle = nn.ModuleList([Stage(residual(width, width), attention(width)), Stage(residual(width, width))])

        self.up = nn.ModuleList()
        for i, multiplier in reversed(list(enumerate(channel_multipliers))):
            for j in range(residual_blocks + 1):
                block = residual(width + skips.pop(), channels * multiplier)
                width = channels * multiplier
                grow: nn.Module | None = None
                if i > 0 and j == residual_blocks:
                    grow = residual(width, width, "up") if resblock_updown else Upsample(width)
                self.up.append(Stage(block, attention(width) if 2**i in attending else None, grow))

        self.norm = group_norm(width, EPS)
        self.head = zeroed(Convolution3x3(width, out_channels))

    def forward(
        self, z_t: Tensor, t: Tensor, context: Tensor | ReadOnce | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Predicted noise [B, out_channels, H, W].

        z_t: noisy latents, float [B, in_channels, H, W]. t: timesteps, int64 [B], 0 to 999. context: float
        [B, L, context_width], or None for a UNet without context. labels: int64 [B], 0 to classes - 1, or
        None for a UNet without classes. Raises ValueError for other shapes, and when H or W is not divisible by
        `stride`. LDM Eq. 3.
        """
        self._check(z_t, t, context, labels)
        embedding = self.time_embedding(t, labels)  # [B, 4 * channels]
        h = self.stem(z_t)  # [B, channels, H, W]
        skips = [h]
        for step in self.down:
            h = self._run(step, h, embedding, context)  # [B, C_i, H/2^i, W/2^i]
            skips.append(h)
        for step in self.middle:
            h = self._run(step, h, embedding, context)  # [B, C_last, H/stride, W/stride]
        for step in self.up:
            h = self._run(step, torch.cat([h, skips.pop()], dim=1), embedding, context)  # [B, C_i, H/2^i, W/2^i]
        return self.head(normalised_silu(self.norm, h))  # [B, out_channels, H, W]

    def _run(self, stage: nn.Module, h: Tensor, embedding: Tensor, context: Tensor | ReadOnce | None) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(stage, h, embedding, context, use_reentrant=False)
        return stage(h, embedding, context)

    def _check(self, z_t: Tensor, t: Tensor, context: Tensor | ReadOnce | None, labels: Tensor | None) -> None:
        shape = list(z_t.shape)
        if len(shape) != 4 or shape[1] != self.in_channels or any(side % self.stride for side in shape[2:]):
            raise ValueError(
                f"z_t has shape {shape}: this UNet takes [B, {self.in_channels}, H, W] "
                f"with H and W divisible by {self.stride}"
            )
        if t.shape != z_t.shape[:1]:
            raise ValueError(f"t has shape {list(t.shape)}: give one timestep a sample, [{shape[0]}]")
        if (labels is None) != (self.classes is None) or (labels is not None and labels.shape != t.shape):
            given = None if labels is None else list(labels.shape)
            wanted = "none" if self.classes is None else f"one of {self.classes} classes a sample"
            raise ValueError(f"labels have shape {given}: this UNet takes {wanted}")
        if self.context_width is None:
            if context is not None:
                raise ValueError("this UNet was built without context_width: leave context out")
            return
        size = None if context is None else list(context.shape)
        if size is None or len(size) != 3 or size[0] != shape[0] or size[2] != self.context_width:
            raise ValueError(f"context has shape {size}: this UNet takes [{shape[0]}, L, {self.context_width}]")
