"""What tasks on the latents of a frozen first stage share."""

from __future__ import annotations

from typing import Any

import torch

from data.batch import Batch
from models.latent_diffusion import FirstStage
from models.schedule import NoiseSchedule
from training import noise
from training.engine import Engine


class LatentTask:
    """Makes latents of a batch, and keeps the latent scale with the checkpoint. Random numbers are keyed by seed."""

    def __init__(self, engine: Engine, first_stage: FirstStage, schedule: NoiseSchedule, seed: int) -> None:
        self.engines = {"model": engine}
        self.engine = engine
        self.first_stage = first_stage
        self.schedule = schedule
        self.seed = seed

    def moments(self, batch: Batch) -> torch.Tensor:
        """What the first stage says of a batch's images, or said when its latents were prepared: [B, K, H/f, W/f]."""
        if batch.moments is not None:
            return batch.moments.to(self.engine.device)
        return self.first_stage.moments(batch.images.to(self.engine.device))

    def latents(self, moments: torch.Tensor, numbers: list[int]) -> torch.Tensor:
        """Posterior sample of each image times the latent scale, float32 [B, C, H/f, W/f], of its `moments`."""
        shape = (self.first_stage.autoencoder.latent_channels, *moments.shape[-2:])
        posterior_noise = noise.normal(self.seed, "posterior", numbers, shape).to(moments.device)
        return self.first_stage.latents(moments, posterior_noise)

    def extra_state(self) -> dict[str, Any]:
        """The latent scale: a resumed run must not estimate it anew."""
        return {"latent_scale": float(self.first_stage.scale)}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Takes the latent scale back."""
        self.first_stage.scale.fill_(state["latent_scale"])
