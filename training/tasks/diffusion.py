"""Latent diffusion: predict the noise that was added to a first stage's latent, or what follows from it (LDM Eq. 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from data.batch import Batch
from models.conditioners import Condition, Conditioners
from models.latent_diffusion import FirstStage
from models.objective import DECILES, SnrWeight, by_group, by_timestep_decile
from models.prediction import Prediction, check_prediction
from models.schedule import NoiseSchedule
from training import noise
from training.engine import Engine
from training.tasks import named_sources
from training.tasks.latents import LatentTask


class DiffusionTask(LatentTask):
    """Trains a LatentDiffusion module behind `engine` on latents of a frozen first stage.

    prediction: what the module's output means. sample_loss: (output, target) -> float32 [B], of models.objective.
    frozen: the conditioners that are not trained. nothing: by name, the input that says nothing, which replaces a
    sample's own with the probability in `dropout` (classifier-free guidance needs it). snr_weight: of timesteps; None:
    all weigh the same. offset_noise: deviation of what is added to a whole channel's noise, so that the model
    learns to change a picture's mean; 0: nothing. sources: names of those that samples are of, where they are several.
    Every random number is keyed by (seed, sample number).

    Raises ValueError where prediction and schedule don't go together.
    """

    def __init__(
        self,
        engine: Engine,
        first_stage: FirstStage,
        schedule: NoiseSchedule,
        prediction: Prediction,
        sample_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        frozen: Conditioners,
        nothing: Mapping[str, torch.Tensor],
        dropout: Mapping[str, float],
        accumulation: int,
        snr_weight: SnrWeight | None,
        offset_noise: float,
        sources: Sequence[str],
        seed: int,
    ) -> None:
        check_prediction(prediction, schedule)
        super().__init__(engine, first_stage, schedule, seed)
        self.prediction = prediction
        self.sample_loss = sample_loss
        self.frozen = frozen
        self.nothing = nothing
        self.dropout = dropout
        self.accumulation = accumulation
        self.snr_weight = snr_weight
        self.offset_noise = offset_noise
        self.sources = sources

    def train_step(self, micro_batches: Iterator[Batch], step: int, learning_rate: float) -> dict[str, torch.Tensor]:
        """One update. Returns float32 on the device, over this rank's micro-batches: "loss", the mean, and
        "loss_decile", the sums and numbers [10, 2] of unweighed losses by timestep, and such a pair for each source."""
        total = torch.zeros((), device=self.engine.device)
        deciles = torch.zeros(DECILES, 2, device=self.engine.device)
        of_sources = torch.zeros(len(self.sources), 2, device=self.engine.device)
        for _ in range(self.accumulation):
            batch = next(micro_batches)
            losses, t = self.losses(batch)
            loss = self.weighted(losses, t).mean()
            self.engine.backward(loss)
            self.engine.step(learning_rate)
            total += loss.detach()
            deciles += by_timestep_decile(losses.detach(), t, self.schedule.steps)
            if self.sources:
                of_sources += by_group(losses.detach(), batch.sources.to(t.device), len(self.sources))
        means = {"loss": total / self.accumulation, "loss_decile": deciles}
        return means | named_sources(of_sources, self.sources)

    def losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Each sample's loss, ‖ε − ε_θ(z_t, t, τ_θ(y))‖² (LDM Eq. 3) or another, float32 [B], and its t, int64 [B]."""
        device = self.engine.device
        numbers = batch.numbers.tolist()
        z_0 = self.latents(self.moments(batch), numbers)  # [B, C, h, w]
        eps = self.draw_noise(numbers, z_0.shape[1:]).to(device)
        t = noise.integers(self.seed, "timestep", numbers, self.schedule.steps).to(device)  # [B]
        z_t = self.schedule.add_noise(z_0, eps, t)
        inputs = {name: values.to(device) for name, values in self.drop(batch.inputs, numbers).items()}
        output = self.engine(z_t.to(self.engine.dtype), t, inputs, self.given(inputs))
        return self.sample_loss(output, self.prediction.target(z_0, eps, *self.schedule.roots(t, z_0))), t

    def draw_noise(self, numbers: list[int], shape: torch.Size) -> torch.Tensor:
        """Standard normal noise, float32 [B, *shape], with each channel's offset (Guttenberg 2023, "Diffusion with
        Offset Noise")."""
        eps = noise.normal(self.seed, "noise", numbers, shape)
        if self.offset_noise:
            eps += self.offset_noise * noise.normal(self.seed, "offset_noise", numbers, (shape[0], 1, 1))
        return eps

    def weighted(self, losses: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Each sample's loss [B] times its timestep's weight: 1 (LDM Eq. 2), or by its SNR."""
        if self.snr_weight is None:
            return losses
        return losses * self.snr_weight.of(self.schedule.alpha_bar[t.cpu()], self.prediction).to(losses)

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
