"""The noise schedule: beta and alpha_bar, and nothing else (LDM App. B; Ho et al. 2020, Eq. 4)."""

import torch
from torch import Tensor


class NoiseSchedule:
    """beta_t rises from beta_start to beta_end evenly in its square root ("scaled linear"; LDM Tab. 12).

    betas, alpha_bar: float64 [steps], on the CPU. Raises ValueError unless 0 < beta_start <= beta_end < 1
    and steps >= 1.
    """

    def __init__(self, beta_start: float, beta_end: float, steps: int = 1000) -> None:
        if not 0 < beta_start <= beta_end < 1 or steps < 1:
            raise ValueError(
                f"beta_start={beta_start}, beta_end={beta_end}, steps={steps}: "
                "need 0 < beta_start <= beta_end < 1 and at least one step"
            )
        self.steps = steps
        self.betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64).square()
        self.alpha_bar = (1.0 - self.betas).cumprod(0)
        # In float64, before any cast: 1 - alpha_bar cancels in low precision at small t.
        self._roots = torch.stack([self.alpha_bar.sqrt(), (1.0 - self.alpha_bar).sqrt()])  # [2, steps]

    def add_noise(self, z_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) eps (Ho et al. 2020, Eq. 4).

        z_0: clean latents, float [B, ...]. eps: standard normal, same shape. t: int64 [B], 0 to steps - 1.
        Returns z_0's shape, dtype and device.
        """
        roots = self._roots.to(t.device)[:, t].to(z_0)  # [2, B]
        signal, noise = roots.view(2, -1, *[1] * (z_0.ndim - 1))  # each [B, 1, ...]
        return signal * z_0 + noise * eps
