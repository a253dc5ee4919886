"""What the denoiser is trained on: losses of samples, and the weights of their timesteps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.prediction import Prediction

DECILES = 10


def l2(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample (LDM, Eq. 2).

    output, target: float [B, ...] of one shape, else ValueError. Returns float32 [B].
    """
    return _difference(output, target).square().flatten(1).mean(1)


def l1(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of each sample; shapes as for `l2`."""
    return _difference(output, target).abs().flatten(1).mean(1)


LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"l2": l2, "l1": l1}
"""By the names that the configuration has for them."""


def _difference(output: Tensor, target: Tensor) -> Tensor:
    if output.shape != target.shape:
        raise ValueError(f"output has shape {list(output.shape)} and target {list(target.shape)}: they must be equal")
    return output.float() - target.float()


@dataclass(frozen=True)
class SnrWeight:
    """Weight of a timestep: min(SNR, gamma)^power on the squared error of z_0; SNR = alpha_bar / (1 - alpha_bar).

    gamma=5, power=1: min-SNR (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", Sec.
    3.4). It takes weight from nearly clean latents, whose noise says little about the picture, and so gets to good
    samples in fewer steps. gamma=None, power=0.5: debiased estimation (Yu et al. 2023, "Unmasking Bias in Diffusion
    Model Training"), which also gives weight to noisy latents, where little but the condition tells what the
    picture is of.

    gamma: above 0, or None for no limit. power: 0 or more. Raises ValueError for others.
    """

    gamma: float | None
    power: float

    def __post_init__(self) -> None:
        if (self.gamma is not None and not self.gamma > 0) or not self.power >= 0:
            raise ValueError(f"gamma={self.gamma} must be above 0, or None, and power={self.power} at least 0")

    def of(self, alpha_bar: Tensor, prediction: Prediction) -> Tensor:
        """The weight of an error of the network's output, such as min(SNR, gamma)^power / SNR for epsilon.

        alpha_bar: float [B] in (0, 1); 0 too, unless epsilon is predicted. Returns its shape.
        """
        snr = alpha_bar / (1 - alpha_bar)
        limited = snr if self.gamma is None else snr.clamp(max=self.gamma)
        return limited**self.power / prediction.error_per_z_0_error(snr)


def by_timestep_decile(losses: Tensor, t: Tensor, steps: int) -> Tensor:
    """Sum and number of the losses [B] in each tenth of the schedule's timesteps: float32 [10, 2].

    Decile 0 holds the cleanest latents, 9 the noisiest. t: int64 [B], 0 to steps - 1.
    """
    return by_group(losses, t * DECILES // steps, DECILES)


def by_group(losses: Tensor, groups: Tensor, count: int) -> Tensor:
    """Sum and number of the losses [B] in each of `count` groups: float32 [count, 2]. groups: int64 [B]."""
    totals = torch.zeros(count, 2, device=losses.device)
    return totals.index_add(0, groups, torch.stack([losses, torch.ones_like(losses)], 1))
