"""How sure a number is: confidence intervals from drawing the images anew (Efron 1979)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LEVEL = 0.95
SEED = 0


def resampled(statistic: Callable[[Tensor], float], count: int, resamples: int) -> Tensor:
    """The statistic of `resamples` sets drawn with replacement, float64 [resamples].

    statistic: of the images with these numbers, int64 [count]. count: images there are.
    Raises ValueError with fewer than two images or resamples.
    """
    if count < 2 or resamples < 2:
        raise ValueError(f"{count} images drawn {resamples} times have no spread; both must be 2 or more")
    generator = torch.Generator().manual_seed(SEED)
    found = [statistic(torch.randint(count, (count,), generator=generator)) for _ in range(resamples)]
    return torch.tensor(found, dtype=torch.float64)


def interval_of_mean(values: Tensor, resamples: int) -> tuple[float, float]:
    """Ends of the 95 % interval of the mean of values, float [N]: percentiles of the resampled means."""
    values = values.double().cpu()
    found = resampled(lambda chosen: float(values[chosen].mean()), len(values), resamples)
    low, high = torch.quantile(found, torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64))
    return float(low), float(high)


def interval_around(value: float, found: Tensor) -> tuple[float, float]:
    """Ends of the 95 % interval of a statistic that resampling shifts, such as a Fréchet distance.

    A drawn set holds fewer different images than the whole, which such a statistic takes for a difference; so only the
    spread of the resampled values is used, about the value itself.
    """
    half = 1.959964 * float(found.std(correction=1))
    return value - half, value + half
