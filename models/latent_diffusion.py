"""Latent diffusion put together: the trainable denoiser with its conditioner, and the frozen first stage."""

import torch
from torch import Tensor, nn

from models.autoencoder import Autoencoder, IdentityAutoencoder
from models.tiling import decode_tiled
from models.unet import UNet


class LatentDiffusion(nn.Module):
    """eps_theta(z_t, t, tau_theta(y)): all that is trained, and nothing else (LDM Eq. 3).

    conditioner: maps tokens int64 [B, L] to a context [B, L, D] for the UNet's cross-attention; None for
    an unconditional model. Raises ValueError when only one of UNet and conditioner uses a context.
    """

    def __init__(self, unet: UNet, conditioner: nn.Module | None) -> None:
        super().__init__()
        if (conditioner is None) != (unet.context_width is None):
            raise ValueError(
                f"conditioner is {type(conditioner).__name__} and the UNet's context_width "
                f"{unet.context_width}: give both, or neither for an unconditional model"
            )
        self.unet = unet
        self.conditioner = conditioner

    def condition(self, tokens: Tensor | None) -> Tensor | None:
        """Context float [B, L, D] of tokens int64 [B, L]; None for an unconditional model."""
        return None if self.conditioner is None else self.conditioner(tokens)

    def forward(self, z_t: Tensor, t: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Predicted noise, as z_t: float [B, C, H, W]. t: int64 [B]. tokens: int64 [B, L]. LDM Eq. 3."""
        return self.unet(z_t, t, self.condition(tokens))


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
        Raises ValueError when the shapes do not fit. LDM App. G.
        """
        x = images.to(self._dtype)  # [B, 3, H, W]
        if images.dtype == torch.uint8:
            x = x / 127.5 - 1.0
        shape = (len(x), *self.latent_shape(*x.shape[-2:]))
        if noise.shape != shape:
            raise ValueError(f"noise has shape {list(noise.shape)}: these images need {list(shape)}")
        return self.scale * self.autoencoder.latents(x, noise)  # [B, C, H/f, W/f]

    @torch.no_grad()
    def decode(self, z: Tensor, tile: int | None = None) -> Tensor:
        """Images [B, 3, H, W], float clamped to [-1, 1], of scaled latents z, float [B, C, H/f, W/f].

        tile: side in latent pixels of the overlapping tiles that are decoded one by one, which bounds the memory;
        neighbours share a quarter of it. None: decoded whole. What tiles change: see models.tiling.
        """
        z, autoencoder = (z / self.scale).to(self._dtype), self.autoencoder
        if tile is None:
            return autoencoder.decode(z).clamp(-1.0, 1.0)
        # In place: a second image of this size would be twice the memory that tiles are there to bound.
        return decode_tiled(autoencoder.decode, z, autoencoder.downsampling, tile, overlap=tile // 4).clamp_(-1.0, 1.0)

    @property
    def _dtype(self) -> torch.dtype:
        """What the autoencoder computes in; an identity has no weights that tell."""
        return next(self.autoencoder.parameters(), self.scale).dtype
