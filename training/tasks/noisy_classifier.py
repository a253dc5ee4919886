"""A classifier of noisy latents, which can guide diffusion to a class (LDM-8-G; Dhariwal & Nichol 2021, Sec. 4)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from data.batch import Batch
from data.inputs.label import LABEL
from models.latent_diffusion import FirstStage
from models.objective import by_timestep_decile
from models.schedule import NoiseSchedule
from training import noise
from training.engine import Engine
from training.tasks.latents import LatentTask


class NoisyClassifierTask(LatentTask):
    """Trains a NoisyClassifier behind `engine`: cross-entropy of the label given z_t, t drawn evenly from all."""

    def __init__(
        self, engine: Engine, first_stage: FirstStage, schedule: NoiseSchedule, accumulation: int, seed: int
    ) -> None:
        super().__init__(engine, first_stage, schedule, seed)
        self.accumulation = accumulation

    def train_step(self, micro_batches: Iterator[Batch], step: int, learning_rate: float) -> dict[str, torch.Tensor]:
        """One update. Returns float32 on the device, over this rank's micro-batches: "loss" and "accuracy", means, and
        "loss_decile" and "accuracy_decile", sums and numbers [10, 2] by timestep."""
        totals: dict[str, torch.Tensor] = {}
        for _ in range(self.accumulation):
            losses, right, t = self.judged(next(micro_batches))
            loss = losses.mean()
            self.engine.backward(loss)
            self.engine.step(learning_rate)
            found = {"loss": loss.detach() / self.accumulation, "accuracy": right.mean() / self.accumulation}
            found |= self.deciles(losses.detach(), right, t)
            totals = {name: value + totals.get(name, 0) for name, value in found.items()}
        return totals

    def judged(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Each sample's cross-entropy in nats, and 1 where the likeliest class is its own, float32 [B]; t int64 [B]."""
        device, numbers = self.engine.device, batch.numbers.tolist()
        z_t, t = self.noised(self.moments(batch), numbers)
        labels = batch.inputs[LABEL].to(device)
        logits = self.engine(z_t.to(self.engine.dtype), t).float()  # [B, classes]
        return F.cross_entropy(logits, labels, reduction="none"), (logits.argmax(1) == labels).float(), t

    def noised(self, moments: torch.Tensor, numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents of images with these moments, noised, float32 [B, C, h, w], and their timesteps, int64 [B]."""
        z_0 = self.latents(moments, numbers)
        eps = noise.normal(self.seed, "noise", numbers, z_0.shape[1:]).to(z_0.device)
        t = noise.integers(self.seed, "timestep", numbers, self.schedule.steps).to(z_0.device)
        return self.schedule.add_noise(z_0, eps, t), t

    def deciles(self, losses: torch.Tensor, right: torch.Tensor, t: torch.Tensor) -> dict[str, torch.Tensor]:
        """Sums and numbers of losses and right answers, each [B], by tenths of the timesteps: float32 [10, 2] each."""
        steps = self.schedule.steps
        return {
            "loss_decile": by_timestep_decile(losses, t, steps),
            "accuracy_decile": by_timestep_decile(right, t, steps),
        }
