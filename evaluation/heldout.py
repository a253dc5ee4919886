"""Captions and images that a protocol is measured on, each rank's share of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import IO

from data.batch import Batch
from data.index import Index
from data.inputs import Input
from data.loader import Loader
from data.mixture import IndexedSource
from data.stream import Storage
from evaluation.content import content_sha256
from evaluation.errors import EvaluationError
from evaluation.metrics.metric import ALONE, Ranks
from evaluation.protocol import Protocol


class HeldOut:
    """The first `protocol.captions` samples of shards, in the order that protocol.seed gives.

    Number n names the same sample whatever the number of ranks and the batch size.

    Args:
        urls: folder, index or shards.
        storage: how they are read.
        inputs: what is read for the model's conditioners, by name.
        protocol: count, seed and image size.
        batch_size, workers: samples at a time, and processes that load them ahead.
        ranks: that share the reading where all of it is read: for the fingerprint, which is a collective.

    fingerprint: of all that the shards hold, wherever they lie.
    Raises EvaluationError when there are fewer samples than the protocol asks for, DataError when the shards
    cannot be read.
    """

    def __init__(
        self,
        urls: str,
        storage: Storage,
        inputs: Mapping[str, Input],
        protocol: Protocol,
        batch_size: int,
        workers: int,
        ranks: Ranks = ALONE,
    ) -> None:
        storage.check(urls)
        self._index = Index.load(urls, storage)
        if len(self._index) < protocol.captions:
            raise EvaluationError(
                f"protocol.captions={protocol.captions}: {urls} holds {len(self._index)} samples; "
                f"give more, or set protocol.captions={len(self._index)} (which is another protocol)"
            )
        self._storage, self._inputs, self._protocol = storage, inputs, protocol
        self._batch_size, self._workers = batch_size, workers
        self.fingerprint = content_sha256([partial(_opened, shard.url, storage) for shard in self._index.shards], ranks)

    def batches(self, rank: int, world: int) -> Iterator[Batch]:
        """This rank's share; batch.numbers lie in [0, protocol.captions). The last batch may be smaller.

        Raises EvaluationError for a sample that can't be used: with another in its place it would be another protocol.
        """
        loader = Loader(
            [IndexedSource(self._index)],
            self._storage,
            seed=self._protocol.seed,
            image_size=self._protocol.image_size,
            inputs=self._inputs,
            global_batch=self._batch_size * world,
            micro_batch=self._batch_size,
            rank=rank,
            world=world,
            workers=self._workers,
        )
        with contextlib.closing(loader.batches()) as batches:
            for batch in batches:
                for fault in batch.faults:
                    if fault.number < self._protocol.captions:
                        raise EvaluationError(
                            f"{fault.url}: sample {fault.key} is bad ({fault.reason}), and a measurement is of all "
                            "samples that its protocol names; mend the shards, or leave it out of them"
                        )
                wanted = int((batch.numbers < self._protocol.captions).sum())
                if wanted:
                    yield _first(batch, wanted)
                if wanted < len(batch):
                    return


@contextlib.contextmanager
def _opened(url: str, storage: Storage) -> Iterator[IO[bytes]]:
    with storage.open(url) as (file, _):
        yield file


def _first(batch: Batch, count: int) -> Batch:
    return replace(
        batch,
        images=batch.images[:count],
        inputs={name: values[:count] for name, values in batch.inputs.items()},
        captions=batch.captions[:count],
        numbers=batch.numbers[:count],
    )
