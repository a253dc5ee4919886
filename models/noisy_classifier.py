"""A classifier of noisy latents, for classifier guidance (LDM-8-G; Dhariwal & Nichol 2021, "ADM", Sec. 4)."""

from collections.abc import Collection, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import SelfAttentionBlock, head_count, to_tokens, zeroed
from models.layers import Convolution3x3
from models.normalisation import group_norm, normalised_silu
from models.unet_layers import EPS, ResidualBlock, Stage, TimeEmbedding, check_latents, check_levels, way_down

POOLS = ("mean", "attention")


class NoisyClassifier(nn.Module):
    """p(y | z_t): the way down of a time-conditional UNet with its middle, and a pool over all positions.

    Settings that UNet has too mean the same. classes: how many there are. pool: "mean" over the positions, or
    "attention" to them (ADM). An untrained classifier holds every class for equally likely.
    Raises ValueError for settings out of range.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        channels: int,
        channel_multipliers: Sequence[int],
        residual_blocks: int,
        attention_downsamplings: Collection[int],
        heads: int | None = None,
        head_channels: int | None = None,
        resblock_updown: bool = False,
        scale_shift_norm: bool = False,
        dropout: float = 0.0,
        pool: Literal["mean", "attention"] = "mean",
    ) -> None:
        super().__init__()
        check_levels(channels, channel_multipliers, attention_downsamplings)
        if classes < 2 or pool not in POOLS:
            raise ValueError(
                f"classes={classes}, pool={pool}: give two classes or more, and a pool out of {', '.join(POOLS)}"
            )

        def residual(a: int, b: int, resize: Literal["down"] | None = None) -> ResidualBlock:
            return ResidualBlock(a, b, 4 * channels, dropout, scale_shift_norm, resize)

        def attention(width: int) -> SelfAttentionBlock:
            return SelfAttentionBlock(width, head_count(width, heads, head_channels))

        self.in_channels = in_channels
        self.classes = classes
        self.stride = 2 ** (len(channel_multipliers) - 1)
        self.time_embedding = TimeEmbedding(channels, None)
        self.stem = Convolution3x3(in_channels, channels)
        stages, widths = way_down(
            channels,
            channel_multipliers,
            residual_blocks,
            attention_downsamplings,
            residual,
            attention,
            resblock_updown,
        )
        width = widths[-1]
        middle = [Stage(residual(width, width), attention(width)), Stage(residual(width, width))]
        self.stages = nn.ModuleList([*stages, *middle])
        self.norm = group_norm(width, EPS)
        self.pool = AttentionPool(width, head_count(width, heads, head_channels)) if pool == "attention" else MeanPool()
        self.head = zeroed(nn.Linear(width, classes))

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        """Logits of p(y | z_t), float [B, classes].

        z_t: noisy latents, float [B, in_channels, H, W]. t: timesteps, int64 [B], 0 to 999. Raises ValueError for other
        shapes, and when H or W is not divisible by `stride`.
        """
        check_latents(z_t, t, self.in_channels, self.stride)
        embedding = self.time_embedding(t, None)  # [B, 4 * channels]
        h = self.stem(z_t)  # [B, channels, H, W]
        for stage in self.stages:
            h = stage(h, embedding, None)  # [B, C_i, H/2^i, W/2^i]
        return self.head(self.pool(normalised_silu(self.norm, h)))


class MeanPool(nn.Module):
    """Mean over all positions. [B, C, H, W] -> [B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class AttentionPool(nn.Module):
    """The mean over all positions attends to each of them and to itself (Radford et al. 2021, "CLIP", Sec. 2.4).

    Without embedded positions, so that latents may have any size. [B, C, H, W] -> [B, C].
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = to_tokens(x)  # [B, H*W, C]
        mean = tokens.mean(1, keepdim=True)  # [B, 1, C]
        q = self.query(mean).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, 1, C/heads]
        k, v = (
            half.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, H*W + 1, C/heads]
            for half in self.key_value(torch.cat([mean, tokens], dim=1)).chunk(2, dim=-1)
        )
        h = F.scaled_dot_product_attention(q, k, v)  # [B, heads, 1, C/heads]
        return self.out(h.transpose(1, 2).flatten(2)).squeeze(1)
