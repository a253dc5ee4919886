"""Sampling that begins from a picture: image to image (SDEdit; Meng et al. 2022), and painting parts of it anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data.transforms import BadSample, decode_image
from data.view import middle
from evaluation.errors import EvaluationError
from models.guidance import inpainting
from models.latent_diffusion import FirstStage
from models.prediction import Denoiser
from models.samplers import Start
from models.schedule import NoiseSchedule


@dataclass(frozen=True)
class StartPicture:
    """What to begin from, and how far to go from it.

    image: uint8 [3, H, W]. strength: share of the sampler's steps that are taken, above 0 (one step) to 1, which begins
    from noise alone. paint: bool [H, W], true where the picture is painted anew and the rest kept; None: everywhere.
    Raises ValueError for a strength out of range, and for a mask of another size.
    """

    image: Tensor
    strength: float
    paint: Tensor | None

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength={self.strength}: choose above 0, near the picture, to 1, from noise alone")
        if self.paint is not None and self.paint.shape != self.image.shape[1:]:
            size, other = list(self.image.shape[1:]), list(self.paint.shape)
            raise ValueError(f"the mask has {other} pixels and the picture {size}: they must be equal")

    def encode(self, first_stage: FirstStage, steps: int) -> StartLatent:
        """The picture as the sampler needs it, on the first stage's device. steps: of the sampler."""
        device = first_stage.scale.device
        shape = first_stage.latent_shape(self.image.shape[1], self.image.shape[2])
        # Without noise: the posterior's mean.
        latent = first_stage.encode(self.image[None].to(device), torch.zeros(1, *shape, device=device))  # [1, C, h, w]
        keep = None
        if self.paint is not None:
            painted = F.adaptive_max_pool2d(self.paint[None, None].to(latent), shape[1:])  # by any of its pixels
            keep = 1 - painted
        return StartLatent(latent, keep, steps - max(1, round(self.strength * steps)))


@dataclass(frozen=True)
class StartLatent:
    """latent: [1, C, h, w]. keep: float [1, 1, h, w], 1 where it is kept; None: nowhere. skip: steps left out."""

    latent: Tensor
    keep: Tensor | None
    skip: int

    def start(self, z_T: Tensor) -> Start | None:
        """Where the sampler begins; z_T: [B, C, h, w]."""
        return Start(self.latent.expand_as(z_T), self.skip) if self.skip else None

    def inpainted(self, denoiser: Denoiser, z_T: Tensor, schedule: NoiseSchedule) -> Denoiser:
        """The denoiser that knows what is kept."""
        return denoiser if self.keep is None else inpainting(denoiser, self.latent.expand_as(z_T), self.keep, schedule)

    def pasted(self, z_0: Tensor) -> Tensor:
        """z_0 [B, C, h, w] without the last noise that some samplers leave in what is kept."""
        return z_0 if self.keep is None else torch.lerp(z_0, self.latent.expand_as(z_0), self.keep)


def read_start_picture(image: Path, mask: Path | None, strength: float, size: int) -> StartPicture:
    """Reads a picture, and a mask that is white where it is to be painted anew; both cut to size x size pixels.

    Raises EvaluationError where a file can't be read or the settings don't go together.
    """
    paint = None if mask is None else read_picture(mask, "mask", size).float().mean(0) > 127
    try:
        return StartPicture(read_picture(image, "image", size), strength, paint)
    except ValueError as error:
        raise EvaluationError(str(error)) from error


def read_picture(path: Path, setting: str, size: int) -> Tensor:
    """uint8 [3, size, size], the middle of a picture. setting: what named it. Raises EvaluationError."""
    try:
        pixels = decode_image(path.read_bytes())
    except (OSError, BadSample) as error:
        raise EvaluationError(f"{setting}={path}: {error}; give a PNG, JPEG, WebP or GIF") from error
    cut = middle(pixels.shape[0], pixels.shape[1], size).cut(pixels, size, Image.Resampling.LANCZOS)
    return torch.from_numpy(cut).permute(2, 0, 1)
