"""What the network's output means: the noise, the velocity or the clean latent."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

from models.schedule import NoiseSchedule


class Estimate(NamedTuple):
    """What a denoiser holds of z_t: z_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) eps, each [B, ...]."""

    z_0: Tensor
    eps: Tensor


Network = Callable[[Tensor, Tensor], Tensor]
"""(z_t [B, C, H, W], t int64 [B]) -> output [B, C, H, W], which a Prediction explains."""

Denoiser = Callable[[Tensor, Tensor], Estimate]
"""(z_t [B, C, H, W], t int64 [B]) -> its estimate of z_0 and eps, each [B, C, H, W]."""


class Prediction(Protocol):
    """One meaning of the output. alpha = sqrt(alpha_bar_t), sigma = sqrt(1 - alpha_bar_t): [B, 1, ...]."""

    needs_signal: bool
    """z_0 can't be had from the output where alpha is 0."""

    def target(self, z_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network is trained to output, as z_0: float [B, ...]."""
        ...

    def estimate(self, output: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Estimate:
        """What an output says of z_0 and eps; all [B, ...]. Affine in the output."""
        ...

    def error_per_z_0_error(self, snr: Tensor) -> Tensor:
        """Squared error of the output that goes with one unit of squared error of its z_0; as snr, alpha² / sigma²."""
        ...


class EpsilonPrediction:
    """The noise eps (Ho et al. 2020, Eq. 14; LDM Eq. 2)."""

    needs_signal = True

    def target(self, z_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """eps."""
        return eps

    def estimate(self, output: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Estimate:
        """z_0 = (z_t - sigma eps) / alpha."""
        return Estimate((z_t - sigma * output) / alpha, output)

    def error_per_z_0_error(self, snr: Tensor) -> Tensor:
        """SNR."""
        return snr


class VelocityPrediction:
    """v = alpha eps - sigma z_0 (Salimans & Ho 2022, "Progressive Distillation", App. D)."""

    needs_signal = False

    def target(self, z_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """alpha eps - sigma z_0."""
        return alpha * eps - sigma * z_0

    def estimate(self, output: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Estimate:
        """z_0 = alpha z_t - sigma v, eps = sigma z_t + alpha v."""
        return Estimate(alpha * z_t - sigma * output, sigma * z_t + alpha * output)

    def error_per_z_0_error(self, snr: Tensor) -> Tensor:
        """SNR + 1."""
        return snr + 1


class CleanPrediction:
    """The clean latent z_0."""

    needs_signal = False

    def target(self, z_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """z_0."""
        return z_0

    def estimate(self, output: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Estimate:
        """eps = (z_t - alpha z_0) / sigma."""
        return Estimate(output, (z_t - alpha * output) / sigma)

    def error_per_z_0_error(self, snr: Tensor) -> Tensor:
        """1."""
        return snr.new_ones(()).expand_as(snr)


PREDICTIONS: Mapping[str, Prediction] = {
    "epsilon": EpsilonPrediction(),
    "v": VelocityPrediction(),
    "z_0": CleanPrediction(),
}
"""By the names that the configuration has for them."""


def check_prediction(prediction: Prediction, schedule: NoiseSchedule) -> None:
    """Raises ValueError where the schedule has a timestep at which z_0 can't be had from the output."""
    if prediction.needs_signal and schedule.zero_terminal_snr:
        raise ValueError(
            "the schedule ends at zero SNR, where the noise says nothing of z_0: choose v or z_0 prediction, "
            "or a schedule with zero_terminal_snr=false"
        )


def as_denoiser(network: Network, prediction: Prediction, schedule: NoiseSchedule) -> Denoiser:
    """The denoiser that a network is, given what its output means. It computes in z_t's dtype.

    Raises ValueError where prediction and schedule don't go together; the denoiser does where the network's output
    isn't of z_t's shape.
    """
    check_prediction(prediction, schedule)

    def denoiser(z_t: Tensor, t: Tensor) -> Estimate:
        output = network(z_t, t)
        if output.shape != z_t.shape:
            raise ValueError(
                f"the network's output has shape {list(output.shape)} and z_t {list(z_t.shape)}: not equal"
            )
        return prediction.estimate(output.to(z_t), z_t, *schedule.roots(t, z_t))

    return denoiser
