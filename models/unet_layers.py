"""Layers of time-conditional UNets, and the way down that the denoiser and the noisy classifier have in common."""

from collections.abc import Callable, Collection, Sequence
from math import log
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import ReadOnce, zeroed
from models.layers import Convolution3x3, Linear, UpsamplingConvolution
from models.normalisation import group_norm, normalised_silu

EPS = 1e-5  # of every normalisation but the spatial transformers'


def sinusoidal(t: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of t at width/2 frequencies from 1 to 1/10000: int64 [B] -> float32 [B, width]."""
    half = width // 2
    frequencies = torch.exp(-log(10_000.0) / half * torch.arange(half, device=t.device, dtype=torch.float32))
    angles = t[:, None].float() * frequencies  # [B, width/2]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class PooledContext(nn.Module):
    """All that a context says as one vector: its tokens' sum, projected. [B, L, context_width] -> [B, width]."""

    def __init__(self, context_width: int, width: int) -> None:
        super().__init__()
        self.project = Linear(context_width, width)

    def forward(self, context: Tensor) -> Tensor:
        return self.project(context.sum(1) / context.shape[1] ** 0.5)  # the sum of L tokens of unit variance has L


class TimeEmbedding(nn.Module):
    """Timesteps, and classes and a pooled context where there are any, as the embedding of every residual block.

    classes: how many there are. pooled_width: of the context that is pooled. None: there are none, there is none.
    """

    def __init__(self, channels: int, classes: int | None, pooled_width: int | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.linear_1 = Linear(channels, 4 * channels)
        self.linear_2 = Linear(4 * channels, 4 * channels)
        self.classes = None if classes is None else nn.Embedding(classes, 4 * channels)
        self.pooled = None if pooled_width is None else PooledContext(pooled_width, 4 * channels)

    def forward(self, t: Tensor, labels: Tensor | None, context: Tensor | ReadOnce | None = None) -> Tensor:
        """t, labels: int64 [B], context [B, L, pooled_width] -> SiLU-activated embedding [B, 4 * channels]."""
        h = sinusoidal(t, self.channels).to(self.linear_1.weight.dtype)  # [B, channels]
        h = self.linear_2(F.silu(self.linear_1(h)))  # [B, 4 * channels]
        if self.classes is not None:
            h = h + self.classes(labels)
        if self.pooled is not None and context is not None:
            h = h + (context.through(self.pooled) if isinstance(context, ReadOnce) else self.pooled(context))
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
            h = F.silu(self.norm_2(h) * (1 + scale) + shift)
        else:
            h = normalised_silu(self.norm_2, h + e)
        return self.conv_2(self.dropout(h)).add_(self.skip(self._resized(x)))


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


def check_levels(channels: int, channel_multipliers: Sequence[int], attention_downsamplings: Collection[int]) -> None:
    """Raises ValueError unless there is a level, attention is at levels that there are, and the channels are even."""
    known = [2**i for i in range(len(channel_multipliers))]
    unknown = sorted(set(attention_downsamplings) - set(known))
    if not known or unknown:
        raise ValueError(
            f"channel_multipliers={list(channel_multipliers)}, attention_downsamplings has {unknown}: "
            f"give at least one multiplier, and downsamplings out of {known}"
        )
    if channels % 2:
        raise ValueError(f"channels={channels}: give an even number, half for sines, half for cosines")


def check_latents(z_t: Tensor, t: Tensor, in_channels: int, stride: int) -> None:
    """Raises ValueError unless z_t is [B, in_channels, H, W] with sides divisible by stride, and t is [B]."""
    shape = list(z_t.shape)
    if len(shape) != 4 or shape[1] != in_channels or any(side % stride for side in shape[2:]):
        raise ValueError(
            f"z_t has shape {shape}: this model takes [B, {in_channels}, H, W] with H and W divisible by {stride}"
        )
    if t.shape != z_t.shape[:1]:
        raise ValueError(f"t has shape {list(t.shape)}: give one timestep a sample, [{shape[0]}]")


def way_down(
    channels: int,
    channel_multipliers: Sequence[int],
    residual_blocks: int,
    attention_downsamplings: Collection[int],
    residual: Callable[[int, int, Literal["down"] | None], ResidualBlock],
    attention: Callable[[int], nn.Module],
    resblock_updown: bool,
) -> tuple[list[nn.Module], list[int]]:
    """The stages from the stem to the lowest level, and the widths of what enters and leaves them. Settings: see UNet.

    residual: makes a block from one width to another, which shrinks the map or not. attention: of a width.
    """
    stages: list[nn.Module] = []
    width = channels
    widths = [width]
    for i, multiplier in enumerate(channel_multipliers):
        for _ in range(residual_blocks):
            block = residual(width, channels * multiplier, None)
            width = channels * multiplier
            stages.append(Stage(block, attention(width) if 2**i in attention_downsamplings else None))
            widths.append(width)
        if i < len(channel_multipliers) - 1:
            stages.append(Stage(residual(width, width, "down")) if resblock_updown else Downsample(width))
            widths.append(width)
    return stages, widths
