"""Functions that steer: each wraps a network or a denoiser and gives back another."""

from collections.abc import Callable

import torch
from torch import Tensor

from models.prediction import Network

ConditionalNetwork = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z_t [B, C, H, W], t int64 [B], condition [B, ...]) -> output [B, C, H, W], which a Prediction explains."""


def classifier_free(network: ConditionalNetwork, conditional: Tensor, unconditional: Tensor, scale: float) -> Network:
    """eps_u + scale (eps_c - eps_u), both from one pass over a doubled batch (Ho & Salimans 2021, Eq. 6).

    It combines outputs: eps, v and z_0 are affine in one another, so each prediction gives the same guided eps.

    conditional: [B, ...]. unconditional: the same shape, or [1, ...] for all. scale: 1 is the conditional
    model itself, at its cost; 0 the unconditional one; the paper's text-to-image results use 1.5
    (LDM Tab. 2). The network returned takes B samples.
    """
    if scale == 1.0:
        return lambda z_t, t: network(z_t, t, conditional)
    both = torch.cat([unconditional.expand_as(conditional), conditional])  # [2B, ...]

    def guided(z_t: Tensor, t: Tensor) -> Tensor:
        output = network(torch.cat([z_t, z_t]), torch.cat([t, t]), both)  # [2B, C, H, W]
        output_u, output_c = output.chunk(2)
        return output_u + scale * (output_c - output_u)

    return guided
