"""Latent diffusion: predict the noise that was added to a first stage's latent (LDM Eq. 2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from data.batch import Batch
from models.conditioners import Condition, Conditioners
from models.latent_diffusion import FirstStage
from models.objective import epsilon_loss, min_snr_weight
from models.schedule import NoiseSchedule
from training import noise
from training.engine import Engine


class DiffusionTask:
    """Trains a LatentDiffusion module behind `engine` on latents of a frozen first stage.

    frozen: the conditioners that are not trained. nothing: by name, the input that says nothing, which replaces a
    sample's own with the probability in `dropout` (classifier-free guidance needs it). min_snr_gamma: weighs timesteps
    by min-SNR; None: evenly. Every random number is keyed by (seed, sample number).
    """

    def __init__(
        self,
        engine: Engine,
        first_stage: FirstStage,
        schedule: NoiseSchedule,
        frozen: Conditioners,
        nothing: Mapping[str, torch.Tensor],
        dropout: Mapping[str, float],
        accumulation: int,
        min_snr_gamma: float | None,
        seed: int,
    ) -> None:
        self.engines = {"model": engine}
        self.engine = engine
        self.first_stage = first_stage
        self.schedule = schedule
        self.frozen = frozen
        self.nothing = nothing
        self.dropout = dropout
        self.accumulation = accumulation
        self.min_snr_gamma = min_snr_gamma
        self.seed = seed

    def train_step(self, micro_batches: Iterator[Batch], step: int, learning_rate: float) -> dict[str, torch.Tensor]:
        """One update. Returns {"loss": mean of this rank's micro-batches}, a float32 scalar on the device."""
        total = torch.zeros((), device=self.engine.device)
        for _ in range(self.accumulation):
            loss = self.loss(next(micro_batches))
            self.engine.backward(loss)
            self.engine.step(learning_rate)
            total += loss.detach()
        return {"loss": total / self.accumulation}

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean of ‖ε − ε_θ(z_t, t, τ_θ(y))‖² over the micro-batch, weighed (LDM Eq. 3)."""
        device = self.engine.device
        numbers = batch.numbers.tolist()
        z_0 = self.encode(batch.images.to(device), numbers)  # [B, C, h, w]
        eps = noise.normal(self.seed, "noise", numbers, z_0.shape[1:]).to(device)
        t = noise.integers(self.seed, "timestep", numbers, self.schedule.steps).to(device)  # [B]
        z_t = self.schedule.add_noise(z_0, eps, t)
        inputs = {name: values.to(device) for name, values in self.drop(batch.inputs, numbers).items()}
        prediction = self.engine(z_t.to(self.engine.dtype), t, inputs, self.given(inputs))
        return self.weighted(epsilon_loss(prediction, eps), t).mean()

    def weighted(self, losses: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Each sample's loss [B] with its timestep's weight: 1 (LDM Eq. 2), or min-SNR where a gamma is set."""
        if self.min_snr_gamma is None:
            return losses
        alpha_bar = self.schedule.alpha_bar[t.cpu()]
        return losses * min_snr_weight(alpha_bar, self.min_snr_gamma).to(losses)

    @torch.no_grad()
    def encode(self, images: torch.Tensor, numbers: list[int]) -> torch.Tensor:
        """Posterior sample of each image times the latent scale, float32 [B, C, H/f, W/f]."""
        shape = self.first_stage.latent_shape(images.shape[-2], images.shape[-1])
        posterior_noise = noise.normal(self.seed, "posterior", numbers, shape).to(images.device)
        return self.first_stage.encode(images, posterior_noise)

    @torch.no_grad()
    def given(self, inputs: Mapping[str, torch.Tensor]) -> Condition:
        """What the frozen conditioners make of the inputs [B, ...]."""
        return self.frozen(inputs).to(self.engine.dtype)

    def drop(self, inputs: Mapping[str, torch.Tensor], numbers: list[int]) -> dict[str, torch.Tensor]:
        """Inputs [B, ...] with some rows of each replaced by the one that says nothing, whatever becomes of others."""
        kept = dict(inputs)
        for name, rate in self.dropout.items():
            dropped = noise.chances(self.seed, f"dropout/{name}", numbers, rate)
            rows = dropped.view(-1, *[1] * self.nothing[name].ndim)
            kept[name] = torch.where(rows, self.nothing[name], inputs[name])
        return kept

    def extra_state(self) -> dict[str, Any]:
        """The latent scale: a resumed run must not estimate it anew."""
        return {"latent_scale": float(self.first_stage.scale)}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Takes the latent scale back."""
        self.first_stage.scale.fill_(state["latent_scale"])
