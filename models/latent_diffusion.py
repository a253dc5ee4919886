"""Latent diffusion put together: the trainable denoiser with its conditioner, and the frozen first stage."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from models.attention import ReadOnce
from models.autoencoder import Autoencoder, IdentityAutoencoder
from models.conditioners import NOTHING, Condition, Conditioner, Conditioners, joined
from models.tiling import decode_tiled
from models.unet import UNet


class LatentDiffusion(nn.Module):
    """The denoiser with the conditioners that are trained along with it: all that is trained (LDM Eq. 3).

    conditioners: each under the name of the input that it reads; none for an unconditional model, or for one whose
    conditioners are frozen and stay outside.
    """

    def __init__(self, unet: UNet, conditioners: Mapping[str, Conditioner]) -> None:
        super().__init__()
        self.unet = unet
        self.conditioners = Conditioners(conditioners)

    def condition(self, inputs: Mapping[str, Tensor], given: Condition = NOTHING) -> Condition:
        """What the conditioners here make of inputs [B, ...], joined with what frozen ones have given."""
        return joined([given, self.conditioners(inputs)])

    def denoise(self, z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The UNet's output for a condition: float [B, C, h, w], as z_t. t: int64 [B]."""
        return self._denoise(z_t, t, condition, condition.context)

    def remembering(self) -> Callable[[Tensor, Tensor, Condition], Tensor]:
        """`denoise` for one sampling: a context's keys and values are computed at the first step alone.

        Takes no gradient through the conditions, and the weights mustn't change while it is in use.
        """
        known: ReadOnce | None = None

        def network(z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            nonlocal known
            if condition.context is None or torch.is_grad_enabled():
                return self.denoise(z_t, t, condition)
            if known is None or known.context is not condition.context:
                known = ReadOnce(condition.context)
            return self._denoise(z_t, t, condition, known)

        return network

    def _denoise(self, z_t: Tensor, t: Tensor, condition: Condition, context: Tensor | ReadOnce | None) -> Tensor:
        if condition.channels is not None:
            z_t = torch.cat([z_t, condition.channels.to(z_t)], dim=1)  # [B, C + concatenated, h, w]
        return self.unet(z_t, t, context, condition.labels)

    def forward(self, z_t: Tensor, t: Tensor, inputs: Mapping[str, Tensor], given: Condition = NOTHING) -> Tensor:
        """Predicted noise, as z_t: float [B, C, h, w]. t: int64 [B]. inputs, given: see `condition`. LDM Eq. 3."""
        return self.denoise(z_t, t, self.condition(inputs, given))


class FirstStage(nn.Module):
    """A frozen autoencoder whose latents are scaled to about unit standard deviation (LDM App. G).

    scale: the factor, 1 / (standard deviation of the autoencoder's latents); 0.18215 for the published
    KL f = 8. Stays in evaluation mode and never takes a gradient.
    Raises ValueError when scale is not positive and finite.
    """

    scale: Tensor

    def __init__(self, autoencoder: Autoencoder | IdentityAutoencoder, scale: float) -> None:
        super().__init__()
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale={scale}: give a positive number, 1 / (standard deviation of latents)")
        self.autoencoder = autoencoder
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FirstStage":
        """Stays in evaluation mode, whatever the module around it does."""
        return super().train(False)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """[C, h, w] of the latent of an image; ValueError when f does not divide height and width."""
        f = self.autoencoder.downsampling
        if height % f or width % f:
            raise ValueError(f"image size {height} x {width}: must be divisible by the first stage's {f}")
        return self.autoencoder.latent_channels, height // f, width // f

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Tensor) -> Tensor:
        """z = scale * (a sample of q(z | x), or VQ's z before quantisation): float [B, C, H/f, W/f].

        images: uint8 [B, 3, H, W], or float in [-1, 1]. noise: standard normal of z's shape.
        Raises ValueError when the shapes do not fit, and for float images that aren't finite. LDM App. G.
        """
        return self.latents(self.moments(images), noise)

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """What `encode` needs to know of images, whatever the noise and the scale: float [B, K, H/f, W/f], K = 2 C for
        a KL stage (mean and log variance), C for others. Raises ValueError as `encode` does."""
        x = images.to(self._dtype)  # [B, 3, H, W]
        if images.dtype == torch.uint8:
            x = x / 127.5 - 1.0
        elif not x.isfinite().all():
            raise ValueError("images hold infinite numbers, or none at all (NaN): give numbers from -1 to 1")
        self.latent_shape(*x.shape[-2:])  # raises
        return self.autoencoder.moments(x)  # [B, K, H/f, W/f]

    @torch.no_grad()
    def latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        """`encode` of images with these moments, float [B, K, h, w] of any precision. Raises ValueError when the noise
        has another shape than z."""
        shape = (len(moments), self.autoencoder.latent_channels, *moments.shape[-2:])
        if noise.shape != shape:
            raise ValueError(f"noise has shape {list(noise.shape)}: these images need {list(shape)}")
        return self.scale * self.autoencoder.drawn(moments.to(self._dtype), noise)  # [B, C, h, w]

    @torch.no_grad()
    def decode(self, z: Tensor, tile: int | None = None) -> Tensor:
        """Images [B, 3, H, W], float clamped to [-1, 1], of scaled latents z, float [B, C, H/f, W/f].

        tile: side in latent pixels of the overlapping tiles that are decoded one by one, which bounds the memory;
        neighbours share a quarter of it. None: decoded whole. What tiles change: see models.tiling.
        Raises ValueError when z isn't finite: a VQ stage would take some entry of its codebook for it.
        """
        if not z.isfinite().all():
            raise ValueError("latents hold infinite numbers, or none at all (NaN): nothing can be decoded from them")
        z, autoencoder = (z / self.scale).to(self._dtype), self.autoencoder
        if tile is None:
            return autoencoder.decode(z).clamp(-1.0, 1.0)
        # In place: a second image of this size would be twice the memory that tiles are there to bound.
        return decode_tiled(autoencoder.decode, z, autoencoder.downsampling, tile, overlap=tile // 4).clamp_(-1.0, 1.0)

    def decode_differentiably(self, z: Tensor) -> Tensor:
        """As `decode`, undivided, with a gradient and without the clamp, which would stop it: for guidance by images.

        Not finite where z isn't.
        """
        return self.autoencoder.decode((z / self.scale).to(self._dtype))

    @property
    def _dtype(self) -> torch.dtype:
        """What the autoencoder computes in; an identity has no weights that tell."""
        return next(self.autoencoder.parameters(), self.scale).dtype
