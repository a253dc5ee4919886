"""What first stages are built of: encoder and decoder (Esser et al. 2021, "Taming Transformers", Tab. 7)."""

from collections.abc import Collection, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from models.activation_checkpointing import ActivationCheckpointing
from models.layers import Convolution3x3, UpsamplingConvolution
from models.normalisation import group_norm, normalised_silu

EPS = 1e-6  # of every normalisation


class ResidualBlock(nn.Module):
    """Two pre-activated 3 x 3 convolutions and a skip. [B, C_in, H, W] -> [B, C_out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm_1 = group_norm(in_channels, EPS)
        self.conv_1 = Convolution3x3(in_channels, out_channels)
        self.norm_2 = group_norm(out_channels, EPS)
        self.conv_2 = Convolution3x3(out_channels, out_channels)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_1(normalised_silu(self.norm_1, x))  # [B, C_out, H, W]
        h = self.conv_2(normalised_silu(self.norm_2, h))  # [B, C_out, H, W]
        return h.add_(self.skip(x))


class Attention(nn.Module):
    """Self-attention over all positions with one head as wide as the layer. [B, C, H, W] -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, EPS)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)  # [B, C, H, W]
        # Contiguous: of others torch makes the whole matrix of attention weights, [H*W, H*W].
        q, k, v = (
            project(h).flatten(2).transpose(1, 2).contiguous().unsqueeze(1)  # [B, 1, H*W, C]
            for project in (self.query, self.key, self.value)
        )
        h = F.scaled_dot_product_attention(q, k, v)  # [B, 1, H*W, C]
        return x + self.out(h.squeeze(1).transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Strided 3 x 3 convolution, padded on the right and bottom only. [B, C, H, W] -> [B, C, H/2, W/2]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour, then a 3 x 3 convolution. [B, C, H, W] -> [B, C, 2H, 2W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = UpsamplingConvolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where asked, then a resize or none."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, attention: bool, resize: nn.Module | None
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.blocks = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(widths))
        self.attentions = nn.ModuleList(Attention(out_channels) if attention else nn.Identity() for _ in range(blocks))
        self.resize = resize if resize is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x = attention(block(x))  # [B, C_out, H, W]
        return self.resize(x)


class Middle(nn.Sequential):
    """Residual block, attention unless left out, residual block at the coarsest resolution. [B, C, h, w] -> same."""

    def __init__(self, channels: int, attention: bool) -> None:
        super().__init__(
            ResidualBlock(channels, channels),
            Attention(channels) if attention else nn.Identity(),
            ResidualBlock(channels, channels),
        )


class Encoder(nn.Module):
    """[B, in, H, W] -> [B, out, H/2^(levels-1), W/2^(levels-1)]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: int,
        channel_multipliers: Sequence[int],
        residual_blocks: int,
        attention_levels: Collection[int],
        middle_attention: bool,
        checkpointing: ActivationCheckpointing,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        widths = [channels] + [channels * multiplier for multiplier in channel_multipliers]
        last = len(channel_multipliers) - 1
        self.stem = Convolution3x3(in_channels, channels)
        self.levels = nn.ModuleList(
            Level(
                widths[i],
                widths[i + 1],
                residual_blocks,
                i in attention_levels,
                Downsample(widths[i + 1]) if i < last else None,
            )
            for i in range(last + 1)
        )
        self.middle = Middle(widths[-1], middle_attention)
        self.norm = group_norm(widths[-1], EPS)
        self.head = Convolution3x3(widths[-1], out_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)  # [B, channels, H, W]
        for i, level in enumerate(self.levels):
            h = self.checkpointing.run(f"levels.{i}", level, h)
        h = self.checkpointing.run("middle", self.middle, h)  # [B, C_last, H/2^(levels-1), W/2^(levels-1)]
        return self.head(normalised_silu(self.norm, h))


class Decoder(nn.Module):
    """The encoder's mirror with one more residual block a level; `levels` run from coarse to fine.

    `forward` ends before the last convolution, `head`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: int,
        channel_multipliers: Sequence[int],
        residual_blocks: int,
        attention_levels: Collection[int],
        middle_attention: bool,
        checkpointing: ActivationCheckpointing,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        widths = [channels * multiplier for multiplier in channel_multipliers]
        last = len(widths) - 1
        self.stem = Convolution3x3(in_channels, widths[last])
        self.middle = Middle(widths[last], middle_attention)
        self.levels = nn.ModuleList(
            Level(
                widths[min(i + 1, last)],
                widths[i],
                residual_blocks + 1,
                i in attention_levels,
                Upsample(widths[i]) if i > 0 else None,
            )
            for i in range(last, -1, -1)
        )
        self.norm = group_norm(widths[0], EPS)
        self.head = Convolution3x3(widths[0], out_channels)

    def forward(self, z: Tensor) -> Tensor:
        h = self.checkpointing.run("middle", self.middle, self.stem(z))  # [B, C_last, h, w]
        for i, level in enumerate(self.levels):
            h = self.checkpointing.run(f"levels.{i}", level, h)
        return normalised_silu(self.norm, h)  # [B, channels, h*2^(levels-1), w*2^(levels-1)]
