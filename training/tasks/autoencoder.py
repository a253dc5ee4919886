"""The first stage: reconstruction against an adversary (LDM Sec. 3.1 and App. G, Eq. 25)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from data.batch import Batch
from models.discriminator import hinge_discriminator_loss, hinge_generator_loss
from models.objective import by_group
from models.perceptual import PerceptualLoss
from training import noise
from training.codebook_revival import CodebookRevival
from training.engine import Engine
from training.modules import ReconstructionModule
from training.tasks import named_sources

MAXIMUM_ADAPTIVE_WEIGHT = 1e4


class AutoencoderTask:
    """Trains autoencoder and discriminator in turn, each behind its own engine.

    Loss of the autoencoder: reconstruction + regulariser_weight · penalty, plus (from `adversary_start` on, counted
    in steps) the hinge loss weighted adaptively by the ratio of gradient norms at the decoder's last layer.

    summed: the reconstruction loss is |x − x̂| / exp(s) + s summed over an image's pixels, s being the learned log
    variance, as published for KL; False: the mean of |x − x̂| over everything, as published for VQ, whose penalty is
    a mean too. The penalty is the autoencoder's own: KL, or codebook loss. `perceptual` is None where its weights
    aren't available. judge: a copy of the discriminator, outside of its engine, to differentiate by the images.
    revival: puts entries of a codebook that nobody uses elsewhere, after an update; None: they stay where they are.
    sources: names of those that samples are of, where they are several.
    """

    def __init__(
        self,
        engine: Engine,
        discriminator_engine: Engine,
        module: ReconstructionModule,
        discriminator: nn.Module,
        judge: nn.Module,
        perceptual: PerceptualLoss | None,
        latent_shape: tuple[int, int, int],
        accumulation: int,
        summed: bool,
        regulariser_weight: float,
        adversary_weight: float,
        adversary_start: int,
        revival: CodebookRevival | None,
        sources: Sequence[str],
        seed: int,
    ) -> None:
        self.engines = {"model": engine, "discriminator": discriminator_engine}
        self.module = module
        self.discriminator = discriminator
        self.judge = judge.to(discriminator_engine.dtype).requires_grad_(False)
        self.perceptual = perceptual
        self.latent_shape = latent_shape
        self.accumulation = accumulation
        self.summed = summed
        self.regulariser_weight = regulariser_weight
        self.adversary_weight = adversary_weight
        self.adversary_start = adversary_start
        self.revival = revival
        self.sources = sources
        self.seed = seed

    def train_step(self, micro_batches: Iterator[Batch], step: int, learning_rate: float) -> dict[str, torch.Tensor]:
        """One update of the autoencoder and, once the adversary plays, one of the discriminator."""
        totals: dict[str, torch.Tensor] = {}
        for _ in range(self.accumulation):
            for name, value in self._micro_step(next(micro_batches), step, learning_rate).items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach()
        metrics = {name: total / self.accumulation for name, total in totals.items()}  # sums and numbers alike
        if self.revival is not None and (revived := self.revival.end_step(step)) is not None:
            metrics["codes_revived"] = revived
        return metrics

    def _micro_step(self, batch: Batch, step: int, learning_rate: float) -> dict[str, torch.Tensor]:
        engine = self.engines["model"]
        images = batch.images.to(engine.device).float() / 127.5 - 1  # [B, 3, H, W]
        posterior_noise = noise.normal(self.seed, "posterior", batch.numbers.tolist(), self.latent_shape)
        output, features, penalty, log_variance, statistics, codes = engine(
            images.to(engine.dtype), posterior_noise.to(engine.device, engine.dtype)
        )
        if self.revival is not None:
            self.revival.see(batch.numbers, *codes)

        # Both losses are differentiated by the reconstruction alone, outside of the engine's graph, and weighed;
        # what they have to say goes into the engine's one backward pass as a gradient at its output.
        reconstruction = output.detach().float().requires_grad_()
        error = self._error(images, reconstruction)
        (wanted,) = torch.autograd.grad(self._reduced(error, log_variance.detach()), reconstruction)
        loss = self._reduced(error.detach(), log_variance)
        differences = (images - reconstruction).abs()
        metrics = {"reconstruction": differences.mean(), "reconstruction_loss": loss}
        # A copy: the update writes into the parameter itself, though not under ZeRO 3.
        metrics |= {"log_variance": log_variance.detach().clone().squeeze(), **statistics}
        if self.sources:
            by_source = by_group(differences.mean((1, 2, 3)), batch.sources.to(images.device), len(self.sources))
            metrics |= named_sources(by_source, self.sources)
        playing = step >= self.adversary_start
        if playing:
            adversary = hinge_generator_loss(self._judge(reconstruction))
            (found,) = torch.autograd.grad(adversary, reconstruction)
            weight = self._adaptive_weight(features.detach().float(), wanted, found)
            wanted = wanted + weight * found
            metrics |= {"adversary": adversary, "adversary_weight": weight}
        # In float32, as float16 can't hold the sum.
        engine.backward((output.float() * wanted).sum() + loss + self.regulariser_weight * penalty)
        engine.step(learning_rate)
        if playing:
            metrics |= self._discriminator_step(images, reconstruction.detach(), learning_rate)
        return {"loss": metrics["reconstruction"], **metrics}

    def _error(self, images: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
        """|x − x̂|, plus the perceptual distance broadcast over the pixels, [B, 3, H, W]."""
        error = (images - reconstruction).abs()
        if self.perceptual is not None:
            error = error + self.perceptual(images, reconstruction)[:, None, None, None]
        return error

    def _reduced(self, error: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        """The reconstruction loss of errors [B, 3, H, W] and the log variance [1]: a scalar."""
        total = (error / log_variance.exp() + log_variance).sum()
        return total / (len(error) if self.summed else error.numel())

    def _judge(self, images: torch.Tensor) -> torch.Tensor:
        """The discriminator's logits, float32, with its weights held constant: this gradient is not for them."""
        engine, weights = self.engines["discriminator"], list(self.discriminator.parameters())
        with engine.whole(weights), torch.no_grad():
            for copy, weight in zip(self.judge.parameters(), weights, strict=True):
                copy.copy_(weight)
        return self.judge(images.to(engine.dtype)).float()

    def _adaptive_weight(self, features: torch.Tensor, wanted: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        """‖∇ reconstruction loss‖ / (‖∇ adversary‖ + 1e-4) by the decoder's last layer, clamped, times the set weight.

        wanted, found: gradients of reconstruction loss and adversary by the reconstruction, [B, 3, H, W].
        """
        autoencoder = self.module.autoencoder
        with self.engines["model"].whole([autoencoder.last_layer]):
            last_layer = autoencoder.last_layer.detach().float().clone().requires_grad_()
        image = autoencoder.to_image_with(features, last_layer)
        (wanted_gradient,) = torch.autograd.grad(image, last_layer, wanted, retain_graph=True)
        (found_gradient,) = torch.autograd.grad(image, last_layer, found)
        ratio = wanted_gradient.norm() / (found_gradient.norm() + 1e-4)
        return self.adversary_weight * ratio.clamp(0.0, MAXIMUM_ADAPTIVE_WEIGHT)

    def _discriminator_step(
        self, images: torch.Tensor, reconstruction: torch.Tensor, learning_rate: float
    ) -> dict[str, torch.Tensor]:
        engine = self.engines["discriminator"]
        loss = hinge_discriminator_loss(
            engine(images.to(engine.dtype)).float(), engine(reconstruction.to(engine.dtype)).float()
        )
        engine.backward(loss)
        engine.step(learning_rate)
        return {"discriminator_loss": loss}

    def extra_state(self) -> dict[str, Any]:
        """What revival knows of the codebook's entries."""
        return {} if self.revival is None else self.revival.state()

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Takes back what `extra_state` gave."""
        if self.revival is not None:
            self.revival.load_state(state)
