"""Where an evaluation's samples and its real images come from."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from data.index import Index
from data.inputs import Input
from data.prepare import prepare
from data.sources.coco import CocoCaptions
from data.store import EmbeddedStore
from data.stream import Storage, join
from evaluation.errors import EvaluationError
from evaluation.heldout import HeldOut
from evaluation.image_folder import ImageFolder
from evaluation.measure import Reference, see_reference
from evaluation.metrics.metric import Pictures, Sizes
from evaluation.networks import Networks
from evaluation.protocol import Protocol
from evaluation.reference import read_card, read_reference, write_reference
from training.distributed import Distributed

log = logging.getLogger(__name__)
SAMPLES_PER_SHARD = 1000


@contextlib.contextmanager
def held_out(
    config: DictConfig, run: DictConfig, inputs: Mapping[str, Input], protocol: Protocol, ranks: Distributed
) -> Iterator[HeldOut]:
    """The samples of data.shards, or without it those that the run itself held out.

    config: of `ldm evaluate`. run: the run's own. inputs: what the model's conditioners read.
    """
    settings = config.data
    with contextlib.ExitStack() as stack:
        if settings.shards is None:
            urls, storage = str(run.data.held_out), instantiate(run.data.storage)
            if run.data.embedded_store:
                stack.enter_context(embedded_store(Path(config.run), ranks))
        else:
            storage = instantiate(settings.storage)
            urls = shards(settings, storage, ranks)
        yield HeldOut(urls, storage, inputs, protocol, config.batch_size, settings.workers, ranks)


def shards(settings: DictConfig, storage: Storage, ranks: Distributed) -> str:
    """Where the shards are; rank 0 writes them first from data.captions and data.images when they are not there."""

    url = str(settings.shards)
    manifest = join(url, "manifest.json")
    if ranks.is_main and settings.captions is not None and not storage.exists(manifest):
        if settings.images is None:
            raise EvaluationError("data.images=null: name the folder of the pictures that data.captions describes")
        log.info("no data at %s yet: preparing it", url)
        prepare(CocoCaptions(settings.captions, settings.images, storage), url, storage, SAMPLES_PER_SHARD)
    ranks.barrier()
    return join(url, "heldout") if storage.exists(manifest) else url


@contextlib.contextmanager
def embedded_store(folder: Path, ranks: Distributed) -> Iterator[None]:
    """The run's own store, served by rank 0, with its address and keys in every rank's environment."""

    with contextlib.ExitStack() as stack:
        environment = None
        if ranks.is_main:
            environment = stack.enter_context(EmbeddedStore(folder / "store")).environment
        os.environ.update(ranks.broadcast_object(environment))
        yield
        ranks.barrier()  # rank 0 must not stop serving while another rank still reads


def known_reference(
    config: DictConfig, protocol: Protocol, networks: Networks, ranks: Distributed
) -> tuple[Reference, str] | None:
    """What is kept of the real images in reference.file, computed of reference.images where it isn't there yet.

    None for a protocol that compares images with their own originals. Else also the fingerprint of the real images.
    Raises EvaluationError when the file is of other networks, sizes or metrics than the protocol's.
    """
    settings = config.reference
    if protocol.reference == "originals":
        if settings.file is not None:
            raise EvaluationError(
                f"reference.file={settings.file}: protocol {protocol.name} compares images with their own originals; "
                "leave it out, or set +protocol.reference=file (which is another protocol)"
            )
        return None
    if settings.file is None:
        raise EvaluationError(
            f"reference.file=null: protocol {protocol.name} compares with other images ({protocol.data}); name the "
            "file that keeps what is known of them, and reference.images to compute it"
        )
    path = Path(settings.file)
    wanted = {
        "image_size": protocol.image_size,
        "features": networks.features.description,
        "metrics": {name: dict(given) for name, given in protocol.metrics.items()},
    }
    if not ranks.broadcast_object(path.exists()):
        if settings.images is None:
            raise EvaluationError(
                f"reference.file={path}: there is no such file; set reference.images to the shards or the folder of "
                "real images that it is to be computed of"
            )
        images = _real_images(config, protocol, ranks)
        log.info("no reference at %s yet: computing it of %d images", path, len(images))
        metrics = networks.metrics(protocol.metrics, Sizes(protocol.captions, len(images)))
        reference = see_reference(images.batches(ranks.rank, ranks.world), networks.features, metrics, ranks)
        source = {"images": str(settings.images), "count": len(images), "fingerprint": images.fingerprint(ranks)}
        if ranks.is_main:
            write_reference(path, reference, {**wanted, **source})
        ranks.barrier()
    return read_reference(path, wanted), str(read_card(path)["fingerprint"])


class _Shards:
    """All images of shards, as batches to be measured."""

    def __init__(self, config: DictConfig, protocol: Protocol, storage: Storage, ranks: Distributed) -> None:
        url = str(config.reference.images)
        count = len(Index.load(url, storage))
        whole = replace(protocol, captions=count, splits=1)
        self._held_out = HeldOut(url, storage, {}, whole, config.batch_size, config.data.workers, ranks)
        self._count = count

    def __len__(self) -> int:
        return self._count

    def fingerprint(self, ranks: Distributed) -> str:
        return self._held_out.fingerprint

    def batches(self, rank: int, world: int) -> Iterator[Pictures]:
        for batch in self._held_out.batches(rank, world):
            yield Pictures(batch.numbers, batch.images)


def _real_images(config: DictConfig, protocol: Protocol, ranks: Distributed) -> _Shards | ImageFolder:
    folder = Path(str(config.reference.images))
    if folder.is_dir() and not (folder / "index.json").exists() and not any(folder.glob("*.tar")):
        return ImageFolder(folder, protocol.image_size, config.batch_size)
    return _Shards(config, protocol, instantiate(config.data.storage), ranks)
