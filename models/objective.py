"""What the denoiser is trained on."""

import torch
from torch import Tensor


def epsilon_loss(prediction: Tensor, eps: Tensor) -> Tensor:
    """Mean squared error of the predicted noise for each sample (LDM, Eq. 2).

    prediction, eps: float [B, ...] of one shape, else ValueError. Returns float32 [B].
    """
    if prediction.shape != eps.shape:
        raise ValueError(f"prediction has shape {list(prediction.shape)} and eps {list(eps.shape)}: they must be equal")
    return (prediction.float() - eps.float()).square().flatten(1).mean(1)


def min_snr_weight(alpha_bar: Tensor, gamma: float) -> Tensor:
    """Weight of a timestep's noise-prediction loss: min(SNR, gamma) / SNR, with SNR = alpha_bar / (1 - alpha_bar).

    It takes weight from nearly clean latents, whose noise says little about the picture, and so gets to good samples
    in fewer steps (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", Eq. 9).

    alpha_bar: float [B] in (0, 1). gamma: above 0, else ValueError; 5 in that paper. Returns alpha_bar's shape, in
    (0, 1].
    """
    if gamma <= 0:
        raise ValueError(f"gamma={gamma} must be above 0; 5 is usual")
    snr = alpha_bar / (1 - alpha_bar)
    return torch.clamp(gamma / snr, max=1.0)
