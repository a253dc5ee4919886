"""Functions that turn a denoiser into another denoiser."""

from collections.abc import Callable

import torch
from torch import Tensor

from models.conditioners import Condition, stacked

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(z_t [B, C, H, W], t int64 [B]) -> eps [B, C, H, W]."""

ConditionalDenoiser = Callable[[Tensor, Tensor, Condition], Tensor]
"""(z_t [B, C, H, W], t int64 [B], condition of B samples) -> eps [B, C, H, W]."""


def classifier_free(
    denoiser: ConditionalDenoiser, conditional: Condition, unconditional: Condition, scale: float
) -> Denoiser:
    """eps_u + scale (eps_c - eps_u), both from one pass over a doubled batch (Ho & Salimans 2021, Eq. 6).

    conditional: of B samples. unconditional: of B samples, or of one for all. scale: 1 is the conditional
    model itself, at its cost; 0 the unconditional one; the paper's text-to-image results use 1.5
    (LDM Tab. 2). The denoiser returned takes B samples.
    """
    if scale == 1.0:
        return lambda z_t, t: denoiser(z_t, t, conditional)

    def guided(z_t: Tensor, t: Tensor) -> Tensor:
        both = stacked([unconditional.repeated(len(z_t)), conditional])  # of 2B samples
        eps = denoiser(torch.cat([z_t, z_t]), torch.cat([t, t]), both)  # [2B, C, H, W]
        eps_u, eps_c = eps.chunk(2)
        return eps_u + scale * (eps_c - eps_u)

    return guided
