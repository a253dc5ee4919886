"""Functions that steer: each wraps a network or a denoiser and gives back another."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.conditioners import Condition, stacked
from models.prediction import Denoiser, Estimate, Network
from models.schedule import NoiseSchedule

ConditionalNetwork = Callable[[Tensor, Tensor, Condition], Tensor]
"""(z_t [B, C, H, W], t int64 [B], condition of B samples) -> output [B, C, H, W], which a Prediction explains."""

Distance = Callable[[Tensor], Tensor]
"""Images, float [B, 3, H, W] -> how far each is from what is wanted, float [B]; differentiable."""


def classifier_free(
    network: ConditionalNetwork, conditional: Condition, unconditional: Condition, scale: float
) -> Network:
    """eps_u + scale (eps_c - eps_u), both from one pass over a doubled batch (Ho & Salimans 2021, Eq. 6).

    It combines outputs: eps, v and z_0 are affine in one another, so each prediction gives the same guided eps.

    conditional: of B samples. unconditional: of B samples, or of one for all. scale: 1 is the conditional
    model itself, at its cost; 0 the unconditional one; the paper's text-to-image results use 1.5
    (LDM Tab. 2). The network returned takes B samples.
    """
    if scale == 1.0 or not conditional.parts():
        return lambda z_t, t: network(z_t, t, conditional)
    both = stacked([unconditional.repeated(len(conditional)), conditional])  # of 2B samples

    def guided(z_t: Tensor, t: Tensor) -> Tensor:
        output = network(torch.cat([z_t, z_t]), torch.cat([t, t]), both)  # [2B, C, H, W]
        output_u, output_c = output.chunk(2)
        return output_u + scale * (output_c - output_u)

    return guided


def classifier(
    denoiser: Denoiser,
    log_probabilities: Callable[[Tensor, Tensor], Tensor],
    labels: Tensor,
    scale: float,
    schedule: NoiseSchedule,
) -> Denoiser:
    """eps - scale sqrt(1 - alpha_bar_t) grad_{z_t} log p(y | z_t) (Dhariwal & Nichol 2021, Algorithm 2).

    log_probabilities: (z_t, t) -> log p of each class, float [B, classes], of a classifier of noisy latents. labels: y,
    int64 [B]. scale: 0 is the denoiser itself; the paper's class-conditional model takes 10 (LDM-8-G).
    Raises ValueError, when used, where classifier and labels don't fit z_t.
    """
    if scale == 0.0:
        return denoiser

    def energy(z_t: Tensor, t: Tensor) -> tuple[Tensor, Estimate]:
        found = log_probabilities(z_t, t)  # [B, classes]
        if found.ndim != 2 or len(found) != len(z_t) or labels.shape != found.shape[:1]:
            raise ValueError(
                f"z_t has shape {list(z_t.shape)}, the classifier's answer {list(found.shape)} and labels "
                f"{list(labels.shape)}: the last two must be [{len(z_t)}, classes] and [{len(z_t)}]"
            )
        with torch.no_grad():
            estimate = denoiser(z_t, t)
        return -scale * found.gather(1, labels[:, None]), estimate

    return _descending(energy, schedule)


def post_hoc(
    denoiser: Denoiser,
    decode: Callable[[Tensor], Tensor],
    distance: Distance,
    schedule: NoiseSchedule,
    scale: float = 1.0,
) -> Denoiser:
    """eps + scale sqrt(1 - alpha_bar_t) grad_{z_t} distance(D(z_0)), z_0 the denoiser's estimate (LDM App. C).

    An unconditional model follows an image so; with `squared_error` that image, seen through T, is a Gaussian's mean.

    decode: D, latents to images, differentiable. distance: of `squared_error`, or a perceptual one, such as
    lambda images: lpips(images, wanted). scale: 0 is the denoiser itself. The gradient passes through the denoiser's
    network, so a step costs about three times as much. Raises ValueError, when used, where distances aren't [B].
    """
    if scale == 0.0:
        return denoiser

    def energy(z_t: Tensor, t: Tensor) -> tuple[Tensor, Estimate]:
        estimate = denoiser(z_t, t)
        distances = distance(decode(estimate.z_0))
        if distances.shape != z_t.shape[:1]:
            raise ValueError(f"distances have shape {list(distances.shape)}: {len(z_t)} samples need [{len(z_t)}]")
        return scale * distances, estimate

    return _descending(energy, schedule)


def squared_error(wanted: Tensor, transform: Callable[[Tensor], Tensor] = lambda images: images) -> Distance:
    """½ ‖y - T(x)‖² of each image x (LDM App. C).

    wanted: y, float [B or 1, ...]. transform: T, differentiable, images [B, 3, H, W] to y's shape; the identity, or
    `downsampling`. The distance raises ValueError where T(x) is of another shape than y.
    """

    def distance(images: Tensor) -> Tensor:
        seen = transform(images)
        if seen.shape[1:] != wanted.shape[1:] or len(wanted) not in (1, len(seen)):
            raise ValueError(f"T(images) has shape {list(seen.shape)} and what is wanted {list(wanted.shape)}")
        return (wanted - seen).square().flatten(1).sum(1) / 2

    return distance


def downsampling(factor: int) -> Callable[[Tensor], Tensor]:
    """Bicubic and antialiased, float [B, 3, H, W] to [B, 3, H / factor, W / factor]: the T of super-resolution."""
    return lambda images: F.interpolate(images, scale_factor=1 / factor, mode="bicubic", antialias=True)


def inpainting(denoiser: Denoiser, known: Tensor, keep: Tensor, schedule: NoiseSchedule) -> Denoiser:
    """The estimate of z_0 is the known latent where it is to be kept, and eps is what then explains z_t.

    So the kept region follows the known latent's own noising along any sampler's trajectory, and the model fills in
    the rest beside it.

    known: [B, C, H, W]. keep: float, 1 where `known` is kept and 0 where it is painted anew, [B or 1, 1 or C, H, W].
    Raises ValueError where keep and known don't fit; the denoiser does where z_t is of another shape than known.
    """
    if keep.ndim != known.ndim or any(k not in (1, n) for k, n in zip(keep.shape, known.shape, strict=True)):
        raise ValueError(f"keep has shape {list(keep.shape)}: it must fit known, {list(known.shape)}")

    def inpainted(z_t: Tensor, t: Tensor) -> Estimate:
        if z_t.shape != known.shape:
            raise ValueError(f"z_t has shape {list(z_t.shape)} and the known latent {list(known.shape)}: not equal")
        z_0, eps = denoiser(z_t, t)
        alpha, sigma = schedule.roots(t, z_t)
        replaced = torch.lerp(z_0, known, keep)
        return Estimate(replaced, eps - alpha / sigma * (replaced - z_0))

    return inpainted


def _descending(energy: Callable[[Tensor, Tensor], tuple[Tensor, Estimate]], schedule: NoiseSchedule) -> Denoiser:
    """eps + sigma grad_{z_t} E, and the z_0 that then explains z_t; energy: (z_t, t) -> E [B, ...] and the estimate.

    Where alpha_bar is 0, no change of eps alone explains z_t: the estimate stays as it is.
    """

    def guided(z_t: Tensor, t: Tensor) -> Estimate:
        with torch.enable_grad():  # samplers run without
            z = z_t.detach().requires_grad_()
            value, estimate = energy(z, t)
            (gradient,) = torch.autograd.grad(value.sum(), z)
        alpha, sigma = schedule.roots(t, z_t)
        change = torch.where(alpha > 0, sigma * gradient, 0)
        z_0, eps = (tensor.detach() for tensor in estimate)
        return Estimate(z_0 - sigma / torch.where(alpha > 0, alpha, 1) * change, eps + change)

    return guided
