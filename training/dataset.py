"""The data a run needs, made ready before its ranks start: the embedded store, preparation, the checks."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from data.batch import Batch
from data.errors import DataError
from data.index import INDEX_NAME, Index, find_shards, indexed_samples, left_out
from data.indexing import build_index
from data.latents import LatentsKey
from data.loader import Loader
from data.mixture import IndexedSource
from data.prepare import prepare
from data.store import EmbeddedStore
from data.stream import Storage, join
from training.components import component
from training.data_sources import SourceSettings, buckets_of, held_out_source, sources_of
from training.latents_key import check_latents

log = logging.getLogger(__name__)
DATA_NOTE = "data.json"


@contextlib.contextmanager
def store_of(config: DictConfig) -> Iterator[dict[str, str]]:
    """Runs the embedded store where the configuration asks for it.

    Yields the environment that a client of it needs, and puts it into this process's own.
    """
    if not config.data.embedded_store:
        yield {}
        return
    with EmbeddedStore(Path(config.run.folder) / "store") as store:
        os.environ.update(store.environment)
        yield store.environment


def make_ready(config: DictConfig) -> None:
    """Writes the shards of the configured source where they are missing, then checks that what is trained on and what
    is held out is there, and indexes it where nobody has.

    Raises DataError when the store, the credentials, the bucket or the shards aren't right.
    """
    storage: Storage = component(config, "data.storage")
    storage.check_cache_folder()
    if config.data.prepare is not None:
        with about("data.url", config.data.url):
            storage.check_writable_place(config.data.url)
        source = component(config, "data.prepare")
        manifest = prepare(source, config.data.url, storage, config.data.samples_per_shard)
        # The report names the pictures' authors and licence.
        (Path(config.run.folder) / "attribution.txt").write_text(manifest["attribution"] + "\n")
    if config.data.latents is not None:
        check_latents(config, storage)
    for source in [*sources_of(config), held_out_source(config)]:
        with about(source.key, source.urls):
            storage.check(source.urls)
            make_index(source, config, storage)
            tell_left_out(source, config, storage)
    check_enough(
        sum(indexed_samples(index_urls(source, config, storage), storage) for source in sources_of(config)), config
    )


def check_places(config: DictConfig) -> None:
    """Asks the store for what `make_ready` will need, and changes nothing. Raises DataError.

    Nothing is asked where the store is the run's own; shards that a source is yet to write needn't be there.
    """
    if config.data.embedded_store:
        return
    storage: Storage = component(config, "data.storage")
    if config.data.prepare is not None:
        with about("data.url", config.data.url):
            storage.check_writable_place(config.data.url)
        return
    for source in [*sources_of(config), held_out_source(config)]:
        with about(source.key, source.urls):
            storage.check(source.urls)


def make_index(source: SourceSettings, config: DictConfig, storage: Storage) -> None:
    """Writes an index of the run's own: a copy of the list of shards, where an index of theirs has all that is needed.

    From then on the run keeps it, or the order of its samples would be another one: shards that are added to the source
    later aren't in it, nor does it matter that an index of theirs is written again.
    """
    folder = own_index(source, config)
    if storage.exists(join(folder, INDEX_NAME)):
        log.info("%s=%s: the run keeps to the index that it began with, in %s", source.key, source.urls, folder)
        return
    sizes = () if source.buckets is None else source.buckets.sizes
    chosen = not source.where or latents_of_these(source, storage) is not None
    if chosen and all(
        shard.offsets_url and (not sizes or shard.sizes == sizes) for shard in find_shards(source.urls, storage)
    ):
        build_index(source.urls, folder, storage)  # offsets stay where they are
        return
    log.info(
        "%s=%s: writing an index of its own to %s; `ldm prepare index` writes one for all",
        *(source.key, source.urls, folder),
    )
    processes = len(os.sched_getaffinity(0))
    replace = config.data.bad_shards == "replace"
    build_index(source.urls, folder, storage, source.where, False, processes, replace, source.buckets)


def tell_left_out(source: SourceSettings, config: DictConfig, storage: Storage) -> None:
    """Puts into the log which shards the run won't see, as they couldn't be read when they were indexed."""
    bad = left_out(index_urls(source, config, storage), storage)
    if bad:
        log.warning(
            "%s=%s: its index leaves out %d shards, which it names under left_out; the first: %s. To have them, mend "
            "them, prepare the index again and begin another run",
            *(source.key, source.urls, len(bad), next(iter(bad.values()))),
        )


def own_index(source: SourceSettings, config: DictConfig) -> str:
    """Folder of the index that a run makes for a source."""
    told = [source.urls, source.where.predicates, *([] if source.buckets is None else [source.buckets.sizes])]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]
    return str(Path(config.run.folder).resolve() / "index" / digest)


def index_urls(source: SourceSettings, config: DictConfig, storage: Storage) -> str | list[str]:
    """What to load a source's index from: the run's own where there is one."""
    own = join(own_index(source, config), INDEX_NAME)
    return own if storage.exists(own) else source.urls


@contextlib.contextmanager
def about(key: str, value: object) -> Iterator[None]:
    """Puts the setting at fault before an error of the data package, which knows no settings."""
    try:
        yield
    except DataError as error:
        raise type(error)(f"{key}={value}: {error}") from error


def check_enough(samples: int, config: DictConfig) -> None:
    """Raises DataError when there are fewer samples to train on than a step takes."""
    if samples < config.batch.global_size:
        raise DataError(
            f"batch.global_size={config.batch.global_size}: a step takes more samples than the {samples} of "
            f"data.train={config.data.train}; name more shards or take a smaller batch"
        )


def training_sources(config: DictConfig, storage: Storage) -> list[IndexedSource]:
    """Where every training sample lies. Raises DataError when there are fewer than a step takes."""
    sources = []
    for source in sources_of(config):
        with about(source.key, source.urls):
            index = Index.load(index_urls(source, config, storage), storage)
            latents = latents_of_these(source, storage)
            images = None if latents is None else latents.samples
            sources.append(IndexedSource(index, source.name, source.weight, images))
    check_enough(sum(len(source.index) for source in sources), config)
    return sources


def latents_of_these(source: SourceSettings, storage: Storage) -> LatentsKey | None:
    """The key of a source's latents, where all samples are among them that fulfil its conditions, and no others; None
    for images, and for latents that were written before anybody asked for these conditions."""
    key = LatentsKey.read(str(source.urls), storage) if source.key == "data.latents" else None
    return key if key is not None and key.where == source.where.predicates else None


def note_data(sources: Sequence[IndexedSource], config: DictConfig, resumed: bool) -> None:
    """Keeps with the run what the order of its samples follows from, and warns when a resumed run's is another one.

    Latents come in the order of the images that they are of, so these are what is noted.
    """
    folder, buckets = Path(config.run.folder), buckets_of(config)
    found = {
        "seed": config.run.seed,
        "sources": {
            source.name: {
                "weight": source.weight,
                "samples": len(source.index),
                "shards": source.images or source.index.fingerprint,
                **({} if buckets is None else {"in_buckets": source.index.in_buckets.sum(0).tolist()}),
            }
            for source in sources
        },
        **(
            {}
            if buckets is None
            else {"buckets": [list(size) for size in buckets.sizes], "global_batch": config.batch.global_size}
        ),
    }
    path = folder / DATA_NOTE
    if resumed and path.exists() and (before := json.loads(path.read_text())) != found:
        log.warning(
            "the samples, weights or seed aren't those that the run had before (%s): the order of samples is another "
            "one from here on; before %s, now %s",
            *(path, before, found),
        )
    path.write_text(json.dumps(found, indent=1) + "\n")


def held_out_samples(config: DictConfig, storage: Storage) -> Batch:
    """Every good sample of data.held_out as one batch, in an order that mixes the shards and is always the same.

    Pictures have data.image_size, or monitor.image_size where a first stage's training says so.
    """
    index = Index.load(index_urls(held_out_source(config), config, storage), storage)
    loader = Loader(
        [IndexedSource(index)],
        storage,
        seed=0,
        image_size=OmegaConf.select(config, "monitor.image_size") or config.data.image_size,
        inputs=instantiate(config.inputs),
        global_batch=1,
        micro_batch=1,
        max_bad_share=config.data.max_bad_share,
    )
    with contextlib.closing(loader.batches()) as batches:
        # A bad sample is replaced by another one, which is in the split anyway: keep the good ones alone.
        good = [batch for batch in itertools.islice(batches, len(index)) if not batch.faults]
    if not good:
        raise DataError(
            f"data.held_out={config.data.held_out}: none of its {len(index)} samples is good; mend the shards"
        )
    return Batch(
        images=torch.cat([batch.images for batch in good]),
        inputs={name: torch.cat([batch.inputs[name] for batch in good]) for name in good[0].inputs},
        captions=[caption for batch in good for caption in batch.captions],
        numbers=torch.cat([batch.numbers for batch in good]),
        sources=torch.cat([batch.sources for batch in good]),
    )
