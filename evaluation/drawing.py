"""What an evaluation measures: images that a run draws, or that its first stage restores."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol as Interface

import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from data.batch import Batch
from evaluation.errors import EvaluationError
from evaluation.generate import generate
from evaluation.heldout import HeldOut
from evaluation.kept_images import KeptImages
from evaluation.metrics.metric import Pictures
from evaluation.pictures import through_jpeg
from evaluation.protocol import Protocol
from evaluation.real_images import held_out
from evaluation.reconstruct import load_autoencoder, reconstruct
from evaluation.run import load_run, read_config
from training.distributed import Distributed

IMAGES_DEPEND_ON = (
    *("draws", "seed", "image_size", "sampler", "sampler_steps", "guidance_scale", "spacing", "eta", "precision"),
    "weights",
)
"""Those settings of a protocol that a drawn image with a given number follows from."""


class Source(Interface):
    """A run's images.

    step: training step of its weights. fingerprint: of all weights and settings that its images depend on, beside the
    protocol's; None where a single pass makes an image, which is not worth keeping.
    """

    step: int
    fingerprint: str | None

    def samples(
        self, config: DictConfig, protocol: Protocol, ranks: Distributed
    ) -> contextlib.AbstractContextManager[HeldOut | None]:
        """What is drawn from; None where that is noise alone."""
        ...

    def images(self, protocol: Protocol, batch: Batch, batch_size: int) -> Tensor:
        """One image for each sample, uint8 [B, 3, H, W]."""
        ...


class Samples:
    """Images that the run's diffusion model draws."""

    def __init__(self, folder: Path, protocol: Protocol, ranks: Distributed) -> None:
        self._loaded = load_run(folder, ranks.device, protocol.weights)
        self.step = self._loaded.step
        self.fingerprint: str | None = self._loaded.fingerprint()
        self.trained_size = self._loaded.image_size
        self._device = ranks.device

    def samples(
        self, config: DictConfig, protocol: Protocol, ranks: Distributed
    ) -> contextlib.AbstractContextManager[HeldOut | None]:
        if not self._loaded.inputs and protocol.reference == "file":
            return contextlib.nullcontext()
        return held_out(config, self._loaded.config, self._loaded.inputs, protocol, ranks)

    def images(self, protocol: Protocol, batch: Batch, batch_size: int) -> Tensor:
        size = protocol.image_size
        with torch.autocast(self._device.type, torch.bfloat16, enabled=protocol.precision == "bfloat16"):
            return generate(
                self._loaded.image_model,
                protocol.build_sampler(),
                batch.inputs,
                [protocol.image_seed(number) for number in batch.numbers.tolist()],
                self._loaded.image_model.first_stage.latent_shape(size, size),
                protocol.sampler_steps,
                protocol.guidance_scale,
                batch_size,
            )


class Reconstructions:
    """The samples' own images, encoded and decoded by the run's first stage."""

    fingerprint: str | None = None

    def __init__(self, folder: Path, protocol: Protocol, ranks: Distributed) -> None:
        self._autoencoder, self.step = load_autoencoder(folder, ranks.device)
        self._run = read_config(folder, ("autoencoder", "diffusion"))
        self._device = ranks.device

    def samples(
        self, config: DictConfig, protocol: Protocol, ranks: Distributed
    ) -> contextlib.AbstractContextManager[HeldOut | None]:
        return held_out(config, self._run, {}, protocol, ranks)

    def images(self, protocol: Protocol, batch: Batch, batch_size: int) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=protocol.precision == "bfloat16"):
            return reconstruct(self._autoencoder, batch.images, self._device)


SOURCES: dict[str, type[Samples] | type[Reconstructions]] = {
    "samples": Samples,
    "reconstructions": Reconstructions,
}


def check_data(protocol: Protocol, samples: HeldOut | None) -> None:
    """Raises EvaluationError when the samples are others than the protocol names."""
    found = None if samples is None else samples.fingerprint
    if protocol.data_sha256 is not None and found != protocol.data_sha256:
        raise EvaluationError(
            f"data.shards: their fingerprint is {found} and protocol {protocol.name} is of {protocol.data_sha256}; "
            "give those, or set +protocol.data_sha256 (which is another protocol)"
        )


def images_key(source: Source, protocol: Protocol, samples: HeldOut | None) -> str | None:
    """Equal where all images are: a hash of what they depend on. None where the source's are not worth keeping."""
    if source.fingerprint is None:
        return None
    depends = {name: getattr(protocol, name) for name in IMAGES_DEPEND_ON}
    depends |= {"model": source.fingerprint, "samples": None if samples is None else samples.fingerprint}
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


def draw(
    source: Source,
    protocol: Protocol,
    samples: HeldOut | None,
    batch_size: int,
    ranks: Distributed,
    kept: KeptImages | None = None,
) -> Iterator[Pictures]:
    """This rank's images, with their captions and, where there are such, the real images of the same samples.

    kept: where images are read from, if all of a batch are there, and else written to: a batch is drawn whole, as its
    images are the same in any batch only to rounding.
    """
    batches = _noise(protocol, batch_size, ranks) if samples is None else samples.batches(ranks.rank, ranks.world)
    with tqdm(
        total=protocol.captions, desc="drawing", unit="image", file=sys.stderr, disable=None if ranks.is_main else True
    ) as bar:
        for batch in batches:
            images = None if kept is None else kept.read(batch.numbers)
            if images is None:
                images = source.images(protocol, batch, batch_size)
                if kept is not None:
                    kept.write(batch.numbers, images)
            if protocol.picture_file == "jpeg95":
                images = through_jpeg(images)
            originals = None if samples is None else batch.images
            captions = batch.captions if any(batch.captions) else []
            yield Pictures(batch.numbers, images, captions, originals)
            bar.update(min(len(batch) * ranks.world, protocol.captions - bar.n))


def _noise(protocol: Protocol, batch_size: int, ranks: Distributed) -> Iterator[Batch]:
    """Samples of a model without inputs: numbers, from which the noise follows."""
    for part in ranks.share(protocol.captions, batch_size):
        yield Batch(
            torch.empty(len(part), 3, 0, 0, dtype=torch.uint8), {}, [""] * len(part), part, torch.zeros_like(part)
        )
