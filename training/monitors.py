"""What is looked at while a model trains: pictures of held-out samples, and what can be measured on them.

Monitors draw their random numbers from generators of their own and compute with EMA weights in a second module, so
training goes on as if nobody had looked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from data.batch import Batch
from evaluation.features import load_features
from evaluation.gallery import read_final_samples, write_final_samples, write_step_samples
from evaluation.generate import ImageModel, generate
from evaluation.measure import Measured, Reference, measure, see_reference
from evaluation.metrics.metric import Pictures
from evaluation.metrics.psnr import psnr
from evaluation.metrics.ssim import ssim
from evaluation.pictures import to_uint8
from evaluation.protocol import Protocol
from evaluation.results import Result, read_results, write_result
from models.autoencoder import Autoencoder
from models.latent_diffusion import LatentDiffusion
from models.samplers import Sampler
from training.checkpoint_files import AVERAGE
from training.distributed import Distributed
from training.progress import Bar
from training.tasks.autoencoder import AutoencoderTask
from training.tasks.diffusion import DiffusionTask
from training.tracker import Tracker

MEASURE_BATCH = 50
FEWEST_OF_SPLIT = 10
"""Images; of fewer the Inception score says nothing."""
PROMPTS_FROM = 1 << 31
"""Number of the first prompt, which its noise comes of: no held-out sample has it."""


class AutoencoderMonitor:
    """Reconstructions of held-out pictures with PSNR and SSIM, every `every` steps and at the last."""

    def __init__(
        self,
        folder: Path,
        config: DictConfig,
        task: AutoencoderTask,
        model: Autoencoder,
        held_out: Batch,
        ranks: Distributed,
        tracker: Tracker,
    ) -> None:
        self.folder = folder
        self.settings = config.monitor
        self.steps = config.steps
        self.task = task
        self.model = model
        self.images = held_out.images
        self.captions = held_out.captions
        self.ranks = ranks
        self.tracker = tracker

    def look(self, step: int) -> dict[str, float]:
        """Metrics `eval/psnr` (dB) and `eval/ssim` on all held-out pictures, at the steps that are due."""
        if step == 0 or (step % self.settings.every and step != self.steps):
            return {}
        self.load_ema()
        if self.ranks.is_main:
            some = self.images[: self.settings.pictures]
            pairs = torch.cat([some, self.reconstructed(some)])
            path = write_step_samples(self.folder, step, pairs, self.captions[: len(some)])
            self.tracker.log_pictures(step, path)
        total = torch.zeros(2, dtype=torch.float64)
        for mine in self.ranks.share(len(self.images), MEASURE_BATCH):
            real = self.images[mine]
            made = self.reconstructed(real)
            total += torch.stack([psnr(made, real).sum(), ssim(made, real).sum()])
        mean = self.ranks.all_reduce_sum(total) / len(self.images)
        return {"eval/psnr": float(mean[0]), "eval/ssim": float(mean[1])}

    def load_ema(self) -> None:
        """Puts the averaged weights into this monitor's own model."""
        prefix = "autoencoder."
        state = {
            n.removeprefix(prefix): t for n, t in self.task.engines["model"].gather(AVERAGE) if n.startswith(prefix)
        }
        self.model.load_state_dict(state)

    @torch.no_grad()
    def reconstructed(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [N, 3, H, W] on the CPU: the most likely latents of as many pictures, decoded."""
        no_noise = torch.zeros(1, 1, 1, 1, device=self.ranks.device)
        latents = self.model.latents(images.to(self.ranks.device).float() / 127.5 - 1, no_noise)
        return to_uint8(self.model.decode(latents).clamp(-1, 1).cpu())


class DiffusionMonitor:
    """Samples for the same prompts and held-out captions every `every` steps; the protocol's measures before training,
    after it and, if asked for, every `measure_every` steps.

    prompts: the tokens int64 [L] of each of `monitor.prompts`.
    """

    def __init__(
        self,
        folder: Path,
        config: DictConfig,
        task: DiffusionTask,
        model: LatentDiffusion,
        held_out: Batch,
        ranks: Distributed,
        tracker: Tracker,
        protocol: Protocol | None,
        sampler: Sampler,
        prompts: Mapping[str, torch.Tensor],
    ) -> None:
        self.folder = folder
        self.settings = config.monitor
        self.steps = config.steps
        self.task = task
        self.image_model = ImageModel(
            model, task.frozen, task.first_stage, task.schedule, task.prediction, task.nothing
        )
        self.held_out = held_out
        self.sampler = sampler
        self.prompts = prompts
        self.looked_at = in_turns(held_out.captions, self.settings.captions_with)
        self.ranks = ranks
        self.tracker = tracker
        self.protocol = None if protocol is None else self._of_held_out(protocol)
        self.reference: Reference | None = None

    def look(self, step: int) -> dict[str, float]:
        """Writes samples, and measures, where due. Returns `eval/...` metrics."""
        last, often = step == self.steps, self.settings.measure_every
        pictured = last or step % self.settings.every == 0
        measured_too = self.protocol is not None and (last or step == 0 or (often is not None and step % often == 0))
        if not (pictured or measured_too):
            return {}
        self.load_ema()
        if pictured:
            self.draw(step)
        if self.protocol is None or not measured_too:
            return {}
        measured = self.measure(self.protocol, step)
        return {
            f"eval/{self.protocol.features}_frechet": measured.frechet,
            f"eval/{self.protocol.features}_score": measured.score,
        }

    def finish(self, step: int) -> None:
        """After the last step: the gallery, and the last measurement; each only where it isn't there yet."""
        self.load_ema()
        if self.protocol is not None and not self._on_main(any(r.step == step for r in read_results(self.folder))):
            self.measure(self.protocol, step)
        gallery = read_final_samples(self.folder)
        if not self._on_main(gallery is not None and gallery.step == step):
            self.draw_gallery(step)

    def load_ema(self) -> None:
        """Puts the averaged weights into this monitor's own model."""
        for name, tensor in self.task.engine.gather(AVERAGE):
            self.image_model.model.get_parameter(name).copy_(tensor)

    def _on_main(self, found: bool) -> bool:
        """What the main rank found: the others might look at the folder later, and differ."""
        return bool(self.ranks.broadcast_object(found))

    def draw(self, step: int) -> None:
        """Writes samples/step-….png: one picture for each prompt, and for the first held-out captions."""
        settings = self.settings
        chosen = self.looked_at[: settings.captions]
        pictures = self._sample(chosen, self.sampler, settings.sampler_steps, settings.guidance_scale)
        if prompted := self._prompted(settings.sampler_steps):
            pictures = torch.cat([torch.stack([*prompted.values()]), pictures])
        if self.ranks.is_main:
            captions = [*self.prompts, *(self.held_out.captions[i] for i in chosen)]
            path = write_step_samples(self.folder, step, pictures, captions)
            self.tracker.log_pictures(step, path)

    def draw_gallery(self, step: int) -> None:
        """Writes the final pictures: held-out captions at several guidance scales beside the real ones, and prompts."""
        settings, steps = self.settings, self.settings.final_sampler_steps
        chosen = self.looked_at[: settings.final_captions]
        generated = {
            scale: self._sample(chosen, self.sampler, steps, scale) for scale in settings.final_guidance_scales
        }
        prompted = self._prompted(steps)
        if self.ranks.is_main:
            captions = [self.held_out.captions[i] for i in chosen]
            real, scale = self.held_out.images[chosen], settings.guidance_scale
            write_final_samples(self.folder, captions, real, generated, step, steps, prompted, scale)

    def measure(self, protocol: Protocol, step: int) -> Measured:
        """Measures by the protocol over all ranks, and writes the result below evaluation/."""
        started = time.monotonic()
        device = self.ranks.device
        # A network's weights are drawn before the stored ones take their place: not of training's random numbers.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            features = load_features(protocol.features, self.settings.feature_weights, device, protocol.features_sha256)
        mine = self.ranks.share(protocol.captions, MEASURE_BATCH)
        if self.reference is None:
            real = (Pictures(numbers, self.held_out.images[numbers]) for numbers in mine)
            self.reference = see_reference(real, features, ranks=self.ranks)
        measured = measure(
            self._generated(protocol, mine, step),
            self.reference,
            features,
            protocol.captions,
            protocol.splits,
            ranks=self.ranks,
        )
        if self.ranks.is_main:
            seconds = time.monotonic() - started
            data: dict[str, str | None] = {"samples": self._fingerprint()}
            card, paper = protocol.card(), list(protocol.paper)
            write_result(
                self.folder, Result(step, AVERAGE, card, protocol.hash, measured.as_dict(), seconds, paper, data)
            )
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what only the network of features took is training's again
        return measured

    def _of_held_out(self, protocol: Protocol) -> Protocol:
        """The protocol as the held-out samples let it be: with fewer of them, other sizes or no further metrics it is
        another one, as its hash must say, and has no published numbers."""
        count = min(protocol.captions, len(self.held_out))
        size = self.held_out.images.shape[-1]
        splits = protocol.splits if count >= FEWEST_OF_SPLIT * protocol.splits else 1
        found = dataclasses.replace(protocol, captions=count, splits=splits, image_size=size, metrics={})
        return found if found.hash == protocol.hash else dataclasses.replace(found, paper=[])

    def _fingerprint(self) -> str:
        """Of the held-out pictures and captions themselves."""
        found = hashlib.sha256(self.held_out.images.numpy().tobytes())
        found.update(json.dumps(self.held_out.captions).encode())
        return found.hexdigest()

    def _generated(self, protocol: Protocol, mine: list[torch.Tensor], step: int) -> Iterator[Pictures]:
        with Bar(f"measure step {step}", sum(map(len, mine)), self.ranks.is_main) as bar:
            for part in mine:
                numbers = part.tolist()
                seeds = [protocol.image_seed(n) for n in numbers]
                steps, scale = protocol.sampler_steps, protocol.guidance_scale
                images = self._sample(numbers, protocol.build_sampler(), steps, scale, seeds)
                bar.advance(len(numbers))
                yield Pictures(part, images)

    def _prompted(self, steps: int) -> dict[str, torch.Tensor]:
        """The picture uint8 [3, H, W] of each prompt."""
        if not self.prompts:
            return {}
        inputs = {"caption": torch.stack([*self.prompts.values()])}
        seeds = [self._seed(PROMPTS_FROM + i) for i in range(len(self.prompts))]
        pictures = self._drawn(inputs, seeds, self.sampler, steps, self.settings.guidance_scale)
        return dict(zip(self.prompts, pictures, strict=True))

    def _sample(
        self, numbers: list[int], sampler: Sampler, steps: int, guidance_scale: float, seeds: list[int] | None = None
    ) -> torch.Tensor:
        """uint8 [N, 3, H, W]: of as many held-out samples."""
        inputs = {name: values[numbers] for name, values in self.held_out.inputs.items()}
        return self._drawn(inputs, seeds or [self._seed(n) for n in numbers], sampler, steps, guidance_scale)

    def _seed(self, number: int) -> int:
        return int(self.task.seed) * 2**32 + number

    def _drawn(
        self, inputs: Mapping[str, torch.Tensor], seeds: list[int], sampler: Sampler, steps: int, guidance_scale: float
    ) -> torch.Tensor:
        height, width = self.held_out.images.shape[-2:]
        latent_shape = self.task.first_stage.latent_shape(height, width)
        return generate(self.image_model, sampler, inputs, seeds, latent_shape, steps, guidance_scale, MEASURE_BATCH)


def in_turns(captions: Sequence[str], words: Sequence[str]) -> list[int]:
    """The numbers of all captions: those with one of the words first, each word's next in turn, then the others.

    words: words or phrases, whole and in any case. No caption comes twice, and without words they keep their order.
    """
    found = [
        [i for i, caption in enumerate(captions) if re.search(rf"\b{re.escape(word)}\b", caption, re.IGNORECASE)]
        for word in words
    ]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*found))
    return list(dict.fromkeys(i for i in itertools.chain(turns, range(len(captions))) if i is not None))
