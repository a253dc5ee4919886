"""The noise schedule: beta, alpha_bar and what follows from them alone (LDM App. B; Ho et al. 2020, Eq. 4)."""

import math

import torch
from torch import Tensor


class NoiseSchedule:
    """beta_t and alpha_bar_t of z_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) eps. Made by `linear` or `cosine`.

    betas: float64 [steps], each above 0 and below 1; the last may be 1, which leaves nothing of z_0 at the last
    timestep. Raises ValueError for others.

    steps: how many. betas, alpha_bar: float64 [steps], on the CPU. zero_terminal_snr: alpha_bar ends at 0.
    """

    def __init__(self, betas: Tensor) -> None:
        within = betas.ndim == 1 and len(betas) and (betas > 0).all() and (betas[:-1] < 1).all() and betas[-1] <= 1
        if not within:
            raise ValueError(
                f"betas of shape {list(betas.shape)}, {betas.tolist()[:3]} ...: give a list of one or more, each above "
                "0 and below 1 (the last may be 1)"
            )
        self.steps = len(betas)
        self.betas = betas.double()
        self.alpha_bar = (1.0 - self.betas).cumprod(0)
        self.zero_terminal_snr = bool(self.alpha_bar[-1] == 0)
        # In float64, before any cast: 1 - alpha_bar cancels in low precision at small t.
        self._roots = torch.stack([self.alpha_bar.sqrt(), (1.0 - self.alpha_bar).sqrt()])  # [2, steps]

    def roots(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha = sqrt(alpha_bar_t) and sigma = sqrt(1 - alpha_bar_t), to be multiplied with `like`.

        t: int64 [B], 0 to steps - 1. like: float [B, ...]. Returns two [B, 1, ...] of its dtype, on its device.
        """
        roots = self._roots.to(t.device)[:, t].to(like)  # [2, B]
        alpha, sigma = roots.view(2, -1, *[1] * (like.ndim - 1))  # each [B, 1, ...]
        return alpha, sigma

    def add_noise(self, z_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) eps (Ho et al. 2020, Eq. 4).

        z_0: clean latents, float [B, ...]. eps: standard normal, same shape. t: int64 [B], 0 to steps - 1.
        Returns z_0's shape, dtype and device.
        """
        alpha, sigma = self.roots(t, z_0)
        return alpha * z_0 + sigma * eps


def linear(beta_start: float, beta_end: float, steps: int = 1000, zero_terminal_snr: bool = False) -> NoiseSchedule:
    """beta_t rises from beta_start to beta_end evenly in its square root ("scaled linear"; LDM Tab. 12).

    Raises ValueError unless 0 < beta_start <= beta_end < 1 and steps >= 1; zero_terminal_snr takes 2 steps.
    """
    if not 0 < beta_start <= beta_end < 1 or steps < 1:
        raise ValueError(
            f"beta_start={beta_start}, beta_end={beta_end}, steps={steps}: "
            "need 0 < beta_start <= beta_end < 1 and at least one step"
        )
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64).square()
    return NoiseSchedule(rescaled_to_zero_terminal_snr(betas) if zero_terminal_snr else betas)


def cosine(
    steps: int = 1000, offset: float = 0.008, highest_beta: float = 0.999, zero_terminal_snr: bool = False
) -> NoiseSchedule:
    """alpha_bar falls as a squared cosine (Nichol & Dhariwal 2021, Eq. 17).

    offset: keeps the first betas from being too small (s in that paper). highest_beta: where betas are cut off, for the
    last would be 1. Raises ValueError unless offset >= 0, 0 < highest_beta < 1 and steps >= 1; zero_terminal_snr takes
    2 steps.
    """
    if offset < 0 or not 0 < highest_beta < 1 or steps < 1:
        raise ValueError(
            f"offset={offset}, highest_beta={highest_beta}, steps={steps}: "
            "need offset >= 0, 0 < highest_beta < 1 and at least one step"
        )
    way = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)  # t / T
    alpha_bar = ((way + offset) / (1 + offset) * math.pi / 2).cos().square()  # up to a factor, which cancels
    betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=highest_beta)
    return NoiseSchedule(rescaled_to_zero_terminal_snr(betas) if zero_terminal_snr else betas)


def rescaled_to_zero_terminal_snr(betas: Tensor) -> Tensor:
    """betas whose alpha_bar ends at 0: sqrt(alpha_bar) is shifted and scaled, its first value kept.

    Sampling starts from pure noise, so training must see it (Lin et al. 2024, "Common Diffusion Noise Schedules and
    Sample Steps Are Flawed", Algorithm 1). betas: float64 [steps], with at least 2 steps, else ValueError.
    """
    if len(betas) < 2:
        raise ValueError(f"steps={len(betas)}: zero_terminal_snr needs at least two")
    root = (1 - betas).cumprod(0).sqrt()
    alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
    return torch.cat([betas[:1], 1 - alpha_bar[1:] / alpha_bar[:-1]])
