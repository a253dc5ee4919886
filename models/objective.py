"""What the denoiser is trained on: losses of samples, and the weights of their timesteps."""

from collections.abc import Callable, Mapping

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


def min_snr_weight(alpha_bar: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """Weight of a timestep's L2 loss: min(SNR, gamma) on the error of z_0, with SNR = alpha_bar / (1 - alpha_bar).

    That is min(SNR, gamma) / SNR for epsilon prediction, / (SNR + 1) for v, / 1 for z_0. It takes weight from nearly
    clean latents, whose noise says little about the picture, and so gets to good samples in fewer steps (Hang et al.
    2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", Sec. 3.4).

    alpha_bar: float [B] in (0, 1); 0 too, unless epsilon is predicted. gamma: above 0, else ValueError; 5 in that
    paper. Returns alpha_bar's shape.
    """
    if gamma <= 0:
        raise ValueError(f"gamma={gamma} must be above 0; 5 is usual")
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=gamma) / prediction.error_per_z_0_error(snr)


def by_timestep_decile(losses: Tensor, t: Tensor, steps: int) -> Tensor:
    """Sum and number of the losses [B] in each tenth of the schedule's timesteps: float32 [10, 2].

    Decile 0 holds the cleanest latents, 9 the noisiest. t: int64 [B], 0 to steps - 1.
    """
    return by_group(losses, t * DECILES // steps, DECILES)


def by_group(losses: Tensor, groups: Tensor, count: int) -> Tensor:
    """Sum and number of the losses [B] in each of `count` groups: float32 [count, 2]. groups: int64 [B]."""
    totals = torch.zeros(count, 2, device=losses.device)
    return totals.index_add(0, groups, torch.stack([losses, torch.ones_like(losses)], 1))
