"""`ldm evaluate`: measures a run by a protocol, on one process or on many ranks."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from evaluation.errors import EvaluationError

if TYPE_CHECKING:
    from torch import Tensor

    from data.stream import Storage
    from evaluation.heldout import HeldOut
    from evaluation.protocol import Protocol
    from evaluation.run import LoadedRun
    from training.distributed import Distributed

log = logging.getLogger("evaluation.evaluate")  # also when run as __main__
SAMPLES_PER_SHARD = 1000


def main() -> None:
    """Entry point of `ldm evaluate` and `python -m evaluation.evaluate`."""
    from data.errors import DataError
    from training import compose

    compose.command("evaluate", run, (EvaluationError, DataError))


def run(config: DictConfig) -> None:
    """Evaluates on this rank; rank 0 writes the result and the report anew."""
    from training.distributed import initialise, shut_down

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("data", "evaluation"):
        logging.getLogger(name).setLevel(logging.INFO)
    ranks = initialise()
    try:
        evaluate(config, ranks)
    finally:
        shut_down()


def evaluate(config: DictConfig, ranks: Distributed) -> None:
    """Measures config.run by config.protocol; the result lies in <run>/evaluation/ afterwards."""
    from evaluation.features import load_features
    from evaluation.measure import measure
    from evaluation.report import write_report
    from evaluation.results import Result, write_result
    from evaluation.run import load_run

    started = time.monotonic()
    folder = Path(config.run)
    if config.data.shards is None and config.data.captions is not None:
        raise EvaluationError("data.shards=null: name a folder where the shards of data.captions are written and kept")
    protocol = build_protocol(config)
    try:
        features = load_features(protocol.features, config.feature_weights, ranks.device)
    except ValueError as error:
        raise EvaluationError(f"feature_weights={config.feature_weights}: {error}") from error
    weights = "ema" if config.ema else "raw"
    loaded = load_run(folder, ranks.device, weights)
    if protocol.image_size != loaded.image_size and ranks.is_main:
        log.warning("the run was trained at %d pixels and draws at %d", loaded.image_size, protocol.image_size)
    with held_out(config, loaded, protocol, ranks) as samples:
        measured = measure(
            draw(loaded, protocol, samples, config.batch_size, ranks),
            (batch.images for batch in samples.batches(ranks.rank, ranks.world)),
            features,
            protocol.captions,
            protocol.splits,
            ranks.all_reduce_sum,
        )
    if ranks.is_main:
        seconds = time.monotonic() - started
        path = write_result(
            folder,
            Result(
                loaded.step,
                weights,
                protocol.card(),
                protocol.hash,
                measured.as_dict(),
                seconds,
                list(protocol.paper),
            ),
        )
        print(f"{measured.frechet_name}: {measured.frechet:.4f}")
        print(f"{measured.score_name}: {measured.score:.4f} ± {measured.score_std:.4f}")
        print(f"{path}\n{write_report(folder)}")
    ranks.barrier()


def build_protocol(config: DictConfig) -> Protocol:
    """The protocol of the configuration. Raises EvaluationError when a value is out of range."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        protocol: Protocol = instantiate(config.protocol, _convert_="all")
    except InstantiationException as error:
        raise EvaluationError(f"protocol: {error.__cause__ or error}") from error
    return protocol


@contextlib.contextmanager
def held_out(config: DictConfig, loaded: LoadedRun, protocol: Protocol, ranks: Distributed) -> Iterator[HeldOut]:
    """The samples of data.shards, or without it those that the run itself held out."""
    from hydra.utils import instantiate

    from evaluation.heldout import HeldOut

    settings = config.data
    with contextlib.ExitStack() as stack:
        if settings.shards is None:
            urls, storage = str(loaded.config.data.held_out), instantiate(loaded.config.data.storage)
            if loaded.config.data.embedded_store:
                stack.enter_context(embedded_store(Path(config.run), ranks))
        else:
            storage = instantiate(settings.storage)
            urls = shards(settings, storage, ranks)
        yield HeldOut(urls, storage, loaded.inputs, protocol, config.batch_size, settings.workers)


def shards(settings: DictConfig, storage: Storage, ranks: Distributed) -> str:
    """Where the shards are; rank 0 writes them first from data.captions and data.images when they are not there."""
    from data.prepare import prepare
    from data.sources.coco import CocoCaptions
    from data.stream import join

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
    from data.store import EmbeddedStore

    with contextlib.ExitStack() as stack:
        environment = None
        if ranks.is_main:
            environment = stack.enter_context(EmbeddedStore(folder / "store")).environment
        os.environ.update(ranks.broadcast_object(environment))
        yield
        ranks.barrier()  # rank 0 must not stop serving while another rank still reads


def draw(
    loaded: LoadedRun, protocol: Protocol, samples: HeldOut, batch_size: int, ranks: Distributed
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's numbers, int64 [B], and the images made from their captions, uint8 [B, 3, H, W]."""
    import torch
    from tqdm import tqdm

    from evaluation.generate import generate
    from models.samplers.ddim import ddim

    sampler = partial(ddim, spacing=protocol.spacing)
    size = protocol.image_size
    latent_shape = loaded.image_model.first_stage.latent_shape(size, size)
    reduced = protocol.precision == "bfloat16"
    with tqdm(
        total=protocol.captions, desc="drawing", unit="image", file=sys.stderr, disable=None if ranks.is_main else True
    ) as bar:
        for batch in samples.batches(ranks.rank, ranks.world):
            seeds = [protocol.image_seed(number) for number in batch.numbers.tolist()]
            with torch.autocast(ranks.device.type, torch.bfloat16, enabled=reduced):
                images = generate(
                    loaded.image_model,
                    sampler,
                    batch.inputs,
                    seeds,
                    latent_shape,
                    protocol.sampler_steps,
                    protocol.guidance_scale,
                    batch_size,
                )
            yield batch.numbers, images
            bar.update(min(len(batch) * ranks.world, protocol.captions - bar.n))


if __name__ == "__main__":
    main()
