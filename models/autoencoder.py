"""The KL-regularised first stage: images to a small latent and back (LDM Sec. 3.1, App. G)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.normalisation import group_norm

# exp(log_variance) stays inside float32, and inside bfloat16, between these bounds.
LOG_VARIANCE_RANGE = (-30.0, 20.0)
EPS = 1e-6  # of every normalisation


@dataclass(frozen=True)
class Posterior:
    """The diagonal Gaussian q(z | x). mean, log_variance: float [B, C, H/f, W/f]. LDM App. G."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """z ~ q(z | x) from standard normal noise of the mean's shape; reparametrised, differentiable."""
        return self.mean + torch.exp(0.5 * self.log_variance) * noise

    def mode(self) -> Tensor:
        """The most likely z, which is the mean: float [B, C, H/f, W/f]."""
        return self.mean

    def kl(self) -> Tensor:
        """KL(q(z | x) || N(0, 1)) in nats, summed over every latent element: float [B]. LDM App. G."""
        elements = self.mean.square() + self.log_variance.exp() - 1.0 - self.log_variance
        return 0.5 * elements.flatten(1).sum(1)


class ResidualBlock(nn.Module):
    """Two pre-activated 3 x 3 convolutions and a skip. [B, C_in, H, W] -> [B, C_out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm_1 = group_norm(in_channels, EPS)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm_2 = group_norm(out_channels, EPS)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_1(F.silu(self.norm_1(x)))  # [B, C_out, H, W]
        h = self.conv_2(F.silu(self.norm_2(h)))  # [B, C_out, H, W]
        return self.skip(x) + h


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
        q, k, v = (
            project(h).flatten(2).transpose(1, 2).unsqueeze(1)  # [B, 1, H*W, C]
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
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


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
    """Residual block, attention, residual block at the coarsest resolution. [B, C, h, w] -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__(ResidualBlock(channels, channels), Attention(channels), ResidualBlock(channels, channels))


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
    ) -> None:
        super().__init__()
        widths = [channels] + [channels * multiplier for multiplier in channel_multipliers]
        last = len(channel_multipliers) - 1
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1)
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
        self.middle = Middle(widths[-1])
        self.norm = group_norm(widths[-1], EPS)
        self.head = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)  # [B, channels, H, W]
        for level in self.levels:
            h = level(h)
        h = self.middle(h)  # [B, C_last, H/2^(levels-1), W/2^(levels-1)]
        return self.head(F.silu(self.norm(h)))


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
    ) -> None:
        super().__init__()
        widths = [channels * multiplier for multiplier in channel_multipliers]
        last = len(widths) - 1
        self.stem = nn.Conv2d(in_channels, widths[last], 3, padding=1)
        self.middle = Middle(widths[last])
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
        self.head = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.middle(self.stem(z))  # [B, C_last, h, w]
        for level in self.levels:
            h = level(h)
        return F.silu(self.norm(h))  # [B, channels, h*2^(levels-1), w*2^(levels-1)]


class AutoencoderKL(nn.Module):
    """First stage with a slight KL penalty on its latent (LDM Sec. 3.1, App. G).

    channels: width at full resolution, times channel_multipliers[i] at level i.
    residual_blocks: blocks a level of the encoder; the decoder has one more.
    latent_channels: channels of z. z_channels: width between encoder and quantisation convolutions,
    latent_channels unless given. patch_size: p > 1 folds p x p pixels into channels before the encoder
    and back after the decoder, so that no layer runs at full resolution. attention_levels: levels with
    self-attention after every block, 0 being the finest; the middle always has it.
    Raises ValueError for settings out of range.
    """

    def __init__(
        self,
        channels: int,
        channel_multipliers: Sequence[int],
        residual_blocks: int,
        latent_channels: int,
        z_channels: int | None = None,
        in_channels: int = 3,
        patch_size: int = 1,
        attention_levels: Collection[int] = (),
    ) -> None:
        super().__init__()
        levels = len(channel_multipliers)
        if levels < 1 or patch_size < 1:
            raise ValueError(
                f"channel_multipliers={list(channel_multipliers)}, patch_size={patch_size}: "
                "give at least one multiplier and a patch_size of 1 or more"
            )
        unknown = sorted(set(attention_levels) - set(range(levels)))
        if unknown:
            raise ValueError(f"attention_levels has {unknown}: levels are 0 (finest) to {levels - 1}")
        z_channels = latent_channels if z_channels is None else z_channels
        shape = (channels, channel_multipliers, residual_blocks, attention_levels)
        folded = in_channels * patch_size**2
        self.in_channels = in_channels
        self.latent_channels = latent_channels
        self.patch_size = patch_size
        self.downsampling = patch_size * 2 ** (levels - 1)
        self.encoder = Encoder(folded, 2 * z_channels, *shape)
        self.decoder = Decoder(z_channels, folded, *shape)
        self.to_moments = nn.Conv2d(2 * z_channels, 2 * latent_channels, 1)
        self.from_latent = nn.Conv2d(latent_channels, z_channels, 1)

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's last convolution, where the adversary's share is balanced."""
        weight = self.decoder.head.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def encode(self, x: Tensor) -> Posterior:
        """q(z | x) of images x, float [B, in_channels, H, W] in [-1, 1], as [B, latent_channels, H/f, W/f].

        Raises ValueError when x has another shape, or H or W is not divisible by f = `downsampling`.
        """
        f = self.downsampling
        if x.ndim != 4 or x.shape[1] != self.in_channels or x.shape[2] % f or x.shape[3] % f:
            raise ValueError(
                f"images have shape {list(x.shape)}: this autoencoder takes [B, {self.in_channels}, H, W] "
                f"with H and W divisible by {f}; resize or crop them"
            )
        h = F.pixel_unshuffle(x, self.patch_size) if self.patch_size > 1 else x  # [B, in*p^2, H/p, W/p]
        mean, log_variance = self.to_moments(self.encoder(h)).chunk(2, dim=1)  # each [B, C, H/f, W/f]
        return Posterior(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents z: float [B, latent_channels, h, w] -> [B, in_channels, f*h, f*w], about [-1, 1].

        Raises ValueError when z has another shape.
        """
        return self.to_image(self.last_features(z))

    def last_features(self, z: Tensor) -> Tensor:
        """What the decoder's last convolution sees: float [B, channels, f*h/p, f*w/p]. `decode` up to there."""
        if z.ndim != 4 or z.shape[1] != self.latent_channels:
            raise ValueError(
                f"latents have shape {list(z.shape)}: this decoder takes [B, {self.latent_channels}, h, w]"
            )
        return self.decoder(self.from_latent(z))

    def to_image(self, features: Tensor) -> Tensor:
        """The decoder's last convolution on `last_features`: images, float [B, in_channels, f*h, f*w]."""
        return self._unfold(self.decoder.head(features))

    def to_image_with(self, features: Tensor, weight: Tensor) -> Tensor:
        """As `to_image`, with another weight of last_layer's shape and without bias: to differentiate by it."""
        return self._unfold(F.conv2d(features, weight, padding=1))

    def _unfold(self, h: Tensor) -> Tensor:
        return F.pixel_shuffle(h, self.patch_size) if self.patch_size > 1 else h
