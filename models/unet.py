"""The denoiser: a time-conditional UNet with attention (LDM Sec. 3.2, 3.3; ADM, Dhariwal & Nichol 2021)."""

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from models.activation_checkpointing import ActivationCheckpointing, numbered
from models.attention import ReadOnce, SelfAttentionBlock, SpatialTransformer, head_count, zeroed
from models.layers import Convolution3x3
from models.normalisation import group_norm, normalised_silu
from models.unet_layers import (
    EPS,
    ResidualBlock,
    Stage,
    TimeEmbedding,
    Upsample,
    check_latents,
    check_levels,
    way_down,
)


class UNet(nn.Module):
    """eps_theta(z_t, t, tau(y)) (LDM Eq. 2 and 3).

    channels: width at full latent resolution, times channel_multipliers[i] at level i, whose downsampling
    is 2**i. residual_blocks: a level on the way down; one more on the way up. attention_downsamplings:
    levels with attention, each by its downsampling; the middle always has it. Exactly one of heads (their
    number) and head_channels (their width). context_width: width of the context that spatial transformers
    of transformer_depth blocks attend to; None builds plain self-attention blocks. pooled_context: the context's sum
    is added to the timestep's embedding besides, as in GLIDE (Nichol et al. 2021): not in the paper, but a
    small model learns its words sooner. classes: how many are
    embedded and added to the timestep's embedding; None: no labels. resblock_updown: resize
    inside residual blocks (BigGAN). scale_shift_norm: see ResidualBlock; without it, levels of width 32
    can't see the time (group_norm says why). dropout: in residual blocks. activation_checkpointing: of which
    stages, True being all (see ActivationCheckpointing): `down`, `middle` and `up` from the first one that is
    computed to the last, or one such as `down.2`. All make a step take a third more time.
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
        pooled_context: bool = False,
        classes: int | None = None,
        resblock_updown: bool = False,
        scale_shift_norm: bool = False,
        dropout: float = 0.0,
        activation_checkpointing: bool | Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        check_levels(channels, channel_multipliers, attention_downsamplings)
        if pooled_context and context_width is None:
            raise ValueError("pooled_context=True: there is no context to pool; give a context_width")

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
        self.stride = 2 ** (len(channel_multipliers) - 1)
        self.time_embedding = TimeEmbedding(channels, classes, context_width if pooled_context else None)
        self.stem = Convolution3x3(in_channels, channels)

        stages, skips = way_down(
            channels,
            channel_multipliers,
            residual_blocks,
            attention_downsamplings,
            residual,
            attention,
            resblock_updown,
        )
        self.down = nn.ModuleList(stages)
        width = skips[-1]  # skips: widths of the feature maps that the way up reads again
        self.middle = nn.ModuleList([Stage(residual(width, width), attention(width)), Stage(residual(width, width))])

        self.up = nn.ModuleList()
        for i, multiplier in reversed(list(enumerate(channel_multipliers))):
            for j in range(residual_blocks + 1):
                block = residual(width + skips.pop(), channels * multiplier)
                width = channels * multiplier
                grow: nn.Module | None = None
                if i > 0 and j == residual_blocks:
                    grow = residual(width, width, "up") if resblock_updown else Upsample(width)
                self.up.append(Stage(block, attention(width) if 2**i in attention_downsamplings else None, grow))

        self.norm = group_norm(width, EPS)
        self.head = zeroed(Convolution3x3(width, out_channels))
        blocks = numbered("down", self.down) + numbered("middle", self.middle) + numbered("up", self.up)
        self.checkpointing = ActivationCheckpointing(activation_checkpointing, blocks)

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
        embedding = self.time_embedding(t, labels, context)  # [B, 4 * channels]
        h = self.stem(z_t)  # [B, channels, H, W]
        skips = [h]
        run = self.checkpointing.run
        for i, step in enumerate(self.down):
            h = run(f"down.{i}", step, h, embedding, context)  # [B, C_i, H/2^i, W/2^i]
            skips.append(h)
        for i, step in enumerate(self.middle):
            h = run(f"middle.{i}", step, h, embedding, context)  # [B, C_last, H/stride, W/stride]
        for i, step in enumerate(self.up):
            h = run(f"up.{i}", step, torch.cat([h, skips.pop()], dim=1), embedding, context)  # [B, C_i, H/2^i, W/2^i]
        return self.head(normalised_silu(self.norm, h))  # [B, out_channels, H, W]

    def _check(self, z_t: Tensor, t: Tensor, context: Tensor | ReadOnce | None, labels: Tensor | None) -> None:
        check_latents(z_t, t, self.in_channels, self.stride)
        if (labels is None) != (self.classes is None) or (labels is not None and labels.shape != t.shape):
            given = None if labels is None else list(labels.shape)
            wanted = "none" if self.classes is None else f"one of {self.classes} classes a sample"
            raise ValueError(f"labels have shape {given}: this UNet takes {wanted}")
        if self.context_width is None:
            if context is not None:
                raise ValueError("this UNet was built without context_width: leave context out")
            return
        size = None if context is None else list(context.shape)
        if size is None or len(size) != 3 or size[0] != len(t) or size[2] != self.context_width:
            raise ValueError(f"context has shape {size}: this UNet takes [{len(t)}, L, {self.context_width}]")
