"""A run's images, measured by one protocol or by several that differ in how the images are drawn."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from evaluation.drawing import Source, draw, images_key
from evaluation.heldout import HeldOut
from evaluation.kept_images import KeptImages
from evaluation.measure import Reference, measure, see_reference
from evaluation.metrics.metric import Pictures, Sizes
from evaluation.networks import Networks
from evaluation.protocol import Protocol
from evaluation.results import FOLDER, Result
from training.distributed import Distributed


class RunMeasurement:
    """Draws and measures, and keeps what is drawn until it is told to forget.

    Args:
        folder: of the run.
        source: draws its images.
        samples: what is drawn from; None: noise alone.
        networks: of the measures.
        known: what the images are compared with and its fingerprint; None: with their originals.
        batch_size: images a rank draws at a time.
        ranks: that share the images.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        samples: HeldOut | None,
        networks: Networks,
        known: tuple[Reference, str] | None,
        batch_size: int,
        ranks: Distributed,
    ) -> None:
        self._drawn = folder / FOLDER / "drawn"
        self._source, self._samples, self._networks, self._ranks = source, samples, networks, ranks
        self._batch_size = batch_size
        self._reference: Reference | None = None
        self._fingerprint: str | None = None
        if known is not None:
            self._reference, self._fingerprint = known

    @property
    def step(self) -> int:
        """Training step of the weights."""
        return self._source.step

    def see_originals(self, protocol: Protocol) -> None:
        """Sees the originals once for all protocols that follow, where they are what images are compared with."""
        if self._reference is None and self._samples is not None:
            batches = (
                Pictures(batch.numbers, batch.images)
                for batch in self._samples.batches(self._ranks.rank, self._ranks.world)
            )
            metrics = self._networks.metrics(protocol.metrics, Sizes(protocol.captions, protocol.captions))
            self._reference = see_reference(batches, self._networks.features, metrics, self._ranks)

    def images_key(self, protocol: Protocol) -> str | None:
        """Of a protocol's images, see evaluation.drawing.images_key."""
        return images_key(self._source, protocol, self._samples)

    def result(self, protocol: Protocol) -> Result:
        """Draws and measures; the same on every rank. Raises ValueError where no number can be had."""
        started = time.monotonic()
        reference = self._reference
        real = protocol.captions if reference is None else int(reference.statistics.count)
        metrics = self._networks.metrics(protocol.metrics, Sizes(protocol.captions, real))
        kept = self._kept(protocol)
        measured = measure(
            draw(self._source, protocol, self._samples, self._batch_size, self._ranks, kept),
            reference,
            self._networks.features,
            protocol.captions,
            protocol.splits,
            metrics,
            self._ranks,
        )
        data = {"samples": None if self._samples is None else self._samples.fingerprint, "reference": self._fingerprint}
        return Result(
            self._source.step,
            protocol.weights,
            protocol.card(),
            protocol.hash,
            measured.as_dict(),
            time.monotonic() - started,
            list(protocol.paper),
            {key: value for key, value in data.items() if value is not None},
            self.images_key(protocol),
        )

    def is_of(self, result: Result, protocol: Protocol) -> bool:
        """Whether measuring again would give this result."""
        key = self.images_key(protocol)
        return (
            key is not None
            and (result.images, result.protocol_hash) == (key, protocol.hash)
            and result.measured["features"] == self._networks.features.description
            and result.data.get("reference") == self._fingerprint
        )

    def first_images(self, protocol: Protocol, count: int) -> Tensor | None:
        """The kept images 0 ... count - 1, uint8 [count, 3, H, W], after `result` has drawn them."""
        kept = self._kept(protocol)
        return None if kept is None else kept.read(torch.arange(min(count, protocol.captions)))

    def forget(self, protocol: Protocol) -> None:
        """Removes the kept images of a protocol, which every rank is through with."""
        kept = self._kept(protocol)
        if kept is not None and self._ranks.is_main:
            kept.remove()

    def _kept(self, protocol: Protocol) -> KeptImages | None:
        key = self.images_key(protocol)
        return None if key is None else KeptImages(self._drawn / key)
