"""First stages: images to a small latent and back, KL-regularised or vector-quantised (LDM Sec. 3.1, App. G)."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.activation_checkpointing import ActivationCheckpointing
from models.autoencoder_layers import Decoder, Encoder
from models.codebook import Codebook, Quantised

# exp(log_variance) stays inside float32, and inside bfloat16, between these bounds.
LOG_VARIANCE_RANGE = (-30.0, 20.0)


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
        """KL(q(z | x) || N(0, 1)) in nats, summed over every latent element: float32 [B]. LDM App. G."""
        mean, log_variance = self.mean.float(), self.log_variance.float()  # float16 can't hold the sum
        elements = mean.square() + log_variance.exp() - 1.0 - log_variance
        return 0.5 * elements.flatten(1).sum(1)


class Regularised(NamedTuple):
    """What an autoencoder trains on. latents: as the decoder takes them, float [B, C, h, w]. penalty: the regulariser,
    mean over the images, float []. statistics: scalars worth watching, by name, without gradient. codes: of VQ z before
    quantisation, without gradient, float [B, C, h, w], and the indices of its entries, int64 [B, h, w]; else empty."""

    latents: Tensor
    penalty: Tensor
    statistics: dict[str, Tensor]
    codes: tuple[Tensor, ...] = ()


class Autoencoder(nn.Module, ABC):
    """Encoder and decoder with a latent between them: what KL and VQ first stages share.

    channels: width at full resolution, times channel_multipliers[i] at level i.
    residual_blocks: blocks a level of the encoder; the decoder has one more.
    latent_channels: channels of z. z_channels: width between encoder and quantisation convolutions,
    latent_channels unless given. patch_size: p > 1 folds p x p pixels into channels before the encoder
    and back after the decoder, so that no layer runs at full resolution. attention_levels: levels with
    self-attention after every block, 0 being the finest. middle_attention: at the coarsest resolution.
    numbers_a_latent: what the encoder gives for each latent element. activation_checkpointing: of which blocks, True
    being all (see ActivationCheckpointing): `encoder` and `decoder` have `levels`, such as `encoder.levels.0`, in the
    order in which they are computed, and a `middle`.
    Raises ValueError for settings out of range.
    """

    def __init__(
        self,
        channels: int,
        channel_multipliers: Sequence[int],
        residual_blocks: int,
        latent_channels: int,
        z_channels: int | None,
        in_channels: int,
        patch_size: int,
        attention_levels: Collection[int],
        middle_attention: bool,
        numbers_a_latent: int,
        activation_checkpointing: bool | Sequence[str] | None,
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
        shape = (channels, channel_multipliers, residual_blocks, attention_levels, middle_attention)
        folded = in_channels * patch_size**2
        self.in_channels = in_channels
        self.latent_channels = latent_channels
        self.patch_size = patch_size
        self.downsampling = patch_size * 2 ** (levels - 1)
        parts = ("middle", *(f"levels.{i}" for i in range(levels)))
        blocks = [f"{half}.{part}" for half in ("encoder", "decoder") for part in parts]
        checkpointing = ActivationCheckpointing(activation_checkpointing, blocks)
        self.encoder = Encoder(folded, numbers_a_latent * z_channels, *shape, checkpointing.within("encoder"))
        self.decoder = Decoder(z_channels, folded, *shape, checkpointing.within("decoder"))
        self.to_moments = nn.Conv2d(numbers_a_latent * z_channels, numbers_a_latent * latent_channels, 1)
        self.from_latent = nn.Conv2d(latent_channels, z_channels, 1)

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's last convolution, where the adversary's share is balanced."""
        weight = self.decoder.head.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def latents(self, x: Tensor, noise: Tensor) -> Tensor:
        """The latents that diffusion works on: float [B, latent_channels, H/f, W/f]. noise: standard normal of z's
        shape; zeros give the most likely latents. Images x: float [B, in_channels, H, W] in [-1, 1]."""
        return self.drawn(self.moments(x), noise)

    @abstractmethod
    def drawn(self, moments: Tensor, noise: Tensor) -> Tensor:
        """`latents` of images whose moments are known: float [B, numbers_a_latent * latent_channels, H/f, W/f]."""

    @abstractmethod
    def regularised(self, x: Tensor, noise: Tensor) -> Regularised:
        """Latents of images for the decoder, with their regulariser; arguments as of `latents`."""

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents z: float [B, latent_channels, h, w] -> [B, in_channels, f*h, f*w], about [-1, 1].

        Raises ValueError when z has another shape.
        """
        if z.ndim != 4 or z.shape[1] != self.latent_channels:
            raise ValueError(
                f"latents have shape {list(z.shape)}: this decoder takes [B, {self.latent_channels}, h, w]"
            )
        return self.to_image(self.last_features(self._for_decoder(z)))

    def last_features(self, z: Tensor) -> Tensor:
        """What the decoder's last convolution sees of `regularised` latents: float [B, channels, f*h/p, f*w/p]."""
        return self.decoder(self.from_latent(z))

    def to_image(self, features: Tensor) -> Tensor:
        """The decoder's last convolution on `last_features`: images, float [B, in_channels, f*h, f*w]."""
        return self._unfold(self.decoder.head(features))

    def to_image_with(self, features: Tensor, weight: Tensor) -> Tensor:
        """As `to_image`, with another weight of last_layer's shape and without bias: to differentiate by it."""
        return self._unfold(F.conv2d(features, weight, padding=1))

    def _for_decoder(self, z: Tensor) -> Tensor:
        """What the decoder takes for z: z itself, unless a first stage says otherwise."""
        return z

    def moments(self, x: Tensor) -> Tensor:
        """All that the encoder says of images x: float [B, numbers_a_latent * latent_channels, H/f, W/f]. For KL they
        are mean and log variance, for VQ z itself. Raises ValueError when x has another shape."""
        f = self.downsampling
        if x.ndim != 4 or x.shape[1] != self.in_channels or x.shape[2] % f or x.shape[3] % f:
            raise ValueError(
                f"images have shape {list(x.shape)}: this autoencoder takes [B, {self.in_channels}, H, W] "
                f"with H and W divisible by {f}; resize or crop them"
            )
        h = F.pixel_unshuffle(x, self.patch_size) if self.patch_size > 1 else x  # [B, in*p^2, H/p, W/p]
        return self.to_moments(self.encoder(h))

    def _unfold(self, h: Tensor) -> Tensor:
        return F.pixel_shuffle(h, self.patch_size) if self.patch_size > 1 else h


class AutoencoderKL(Autoencoder):
    """First stage with a slight KL penalty on its latent (LDM Sec. 3.1, App. G). Settings: see Autoencoder."""

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
        middle_attention: bool = True,
        activation_checkpointing: bool | Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            channels,
            channel_multipliers,
            residual_blocks,
            latent_channels,
            z_channels,
            in_channels,
            patch_size,
            attention_levels,
            middle_attention,
            numbers_a_latent=2,
            activation_checkpointing=activation_checkpointing,
        )

    def encode(self, x: Tensor) -> Posterior:
        """q(z | x) of images x, float [B, in_channels, H, W] in [-1, 1], as [B, latent_channels, H/f, W/f].

        Raises ValueError when x has another shape, or H or W is not divisible by f = `downsampling`.
        """
        return _posterior(self.moments(x))

    def drawn(self, moments: Tensor, noise: Tensor) -> Tensor:
        """A sample of q(z | x) from standard normal noise of z's shape: float [B, latent_channels, H/f, W/f]."""
        return _posterior(moments).sample(noise)

    def regularised(self, x: Tensor, noise: Tensor) -> Regularised:
        """A sample of q(z | x); penalty: the KL in nats, summed over an image's latent (LDM App. G)."""
        posterior = self.encode(x)
        kl = posterior.kl().mean()
        return Regularised(posterior.sample(noise), kl, {"kl": kl.detach()})


class AutoencoderVQ(Autoencoder):
    """First stage whose decoder begins with a quantisation layer (LDM Sec. 3.1, App. G). Settings: see Autoencoder.

    codebook_entries: how many vectors there are. commitment, published_loss: see Codebook.
    """

    def __init__(
        self,
        channels: int,
        channel_multipliers: Sequence[int],
        residual_blocks: int,
        latent_channels: int,
        codebook_entries: int,
        z_channels: int | None = None,
        in_channels: int = 3,
        patch_size: int = 1,
        attention_levels: Collection[int] = (),
        middle_attention: bool = True,
        commitment: float = 0.25,
        published_loss: bool = False,
        activation_checkpointing: bool | Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            channels,
            channel_multipliers,
            residual_blocks,
            latent_channels,
            z_channels,
            in_channels,
            patch_size,
            attention_levels,
            middle_attention,
            numbers_a_latent=1,
            activation_checkpointing=activation_checkpointing,
        )
        self.codebook = Codebook(codebook_entries, latent_channels, commitment, published_loss)

    def encode(self, x: Tensor) -> Tensor:
        """z before quantisation, which diffusion works on: images x as in AutoencoderKL -> float [B, C, H/f, W/f].

        Raises ValueError when x has another shape, or H or W is not divisible by f = `downsampling`.
        """
        return self.moments(x)

    def drawn(self, moments: Tensor, noise: Tensor) -> Tensor:
        """z is its own moments; there is nothing to draw, and noise is left alone."""
        return moments

    def quantise(self, z: Tensor) -> Quantised:
        """z, float [B, latent_channels, h, w], with the nearest codebook entry at each position."""
        return self.codebook(z)

    def regularised(self, x: Tensor, noise: Tensor) -> Regularised:
        """Quantised latents; penalty: codebook and commitment loss. There is nothing to draw, noise is left alone."""
        z = self.encode(x)
        latents, indices, loss = self.quantise(z)
        statistics = {
            "codebook_loss": loss.detach(),
            "codebook_perplexity": self.codebook.perplexity(indices),
            "codebook_usage": self.codebook.usage(indices),
        }
        return Regularised(latents, loss, statistics, (z.detach(), indices))

    def _for_decoder(self, z: Tensor) -> Tensor:
        """z quantised: what was quantised already stays as it is."""
        return self.quantise(z).latents


class IdentityAutoencoder(nn.Module):
    """The first stage with f = 1: images are their own latents, and diffusion works on pixels (LDM-1, Tab. 13, 14).

    channels: of the images. There is nothing to train.
    """

    downsampling = 1

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.latent_channels = channels

    def latents(self, x: Tensor, noise: Tensor) -> Tensor:
        """x as it is: float [B, channels, H, W]. There is nothing to draw, and noise is left alone."""
        return x

    def moments(self, x: Tensor) -> Tensor:
        """x as it is: float [B, channels, H, W]."""
        return x

    def drawn(self, moments: Tensor, noise: Tensor) -> Tensor:
        """The moments as they are: float [B, channels, H, W]; noise is left alone."""
        return moments

    def decode(self, z: Tensor) -> Tensor:
        """z as it is: float [B, channels, H, W]."""
        return z


def _posterior(moments: Tensor) -> Posterior:
    mean, log_variance = moments.chunk(2, dim=1)  # each [B, C, H/f, W/f]
    return Posterior(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))
