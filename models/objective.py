"""What the denoiser is trained on."""

from torch import Tensor


def epsilon_loss(prediction: Tensor, eps: Tensor) -> Tensor:
    """Mean squared error of the predicted noise for each sample (LDM, Eq. 2).

    prediction, eps: float [B, ...] of one shape, else ValueError. Returns float32 [B].
    """
    if prediction.shape != eps.shape:
        raise ValueError(f"prediction has shape {list(prediction.shape)} and eps {list(eps.shape)}: they must be equal")
    return (prediction.float() - eps.float()).square().flatten(1).mean(1)
