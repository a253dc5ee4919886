"""Group normalisation as the published networks have it, and for narrower ones."""

from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """GroupNorm with 32 groups, as published, or with up to 4 where 32 doesn't divide the width.

    A group of one channel erases whatever is added evenly over space, such as a time embedding: so narrow
    layers get few groups. At a width of exactly 32 the published rule does have that effect.
    """
    return nn.GroupNorm(32 if channels % 32 == 0 else gcd(4, channels), channels, eps=eps)


def normalised_silu(norm: nn.Module, x: Tensor) -> Tensor:
    """SiLU of norm(x), of x's shape; in place where no gradient will ask for what lies between."""
    return F.silu(norm(x), inplace=not torch.is_grad_enabled())
