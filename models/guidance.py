"""Functions that turn a denoiser into another denoiser."""

from collections.abc import Callable

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(z_t [B, C, H, W], t int64 [B]) -> eps [B, C, H, W]."""

ConditionalDenoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z_t [B, C, H, W], t int64 [B], condition [B, ...]) -> eps [B, C, H, W]."""


def classifier_free(
    denoiser: ConditionalDenoiser, conditional: Tensor, unconditional: Tensor, scale: float
) -> Denoiser:
    """eps_u + scale (eps_c - eps_u), both from one pass over a doubled batch (Ho & Salimans 2021, Eq. 6).

    conditional: [B, ...]. unconditional: the same shape, or [1, ...] for all. scale: 1 is the conditional
    model itself, at its cost; 0 the unconditional one; the paper's text-to-image results use 1.5
    (LDM Tab. 2). The denoiser returned takes B samples.
    """
    if scale == 1.0:
        return lambda z_t, t: denoiser(z_t, t, conditional)
    both = torch.cat([unconditional.expand_as(conditional), conditional])  # [2B, ...]

    def guided(z_t: Tensor, t: Tensor) -> Tensor:
        eps = denoiser(torch.cat([z_t, z_t]), torch.cat([t, t]), both)  # [2B, C, H, W]
        eps_u, eps_c = eps.chunk(2)
        return eps_u + scale * (eps_c - eps_u)

    return guided
