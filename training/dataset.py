"""The data a run needs, made ready before its ranks start: the embedded store, preparation, the checks."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from data.batch import Batch
from data.errors import DataError
from data.index import Index
from data.loader import Loader
from data.prepare import prepare
from data.store import EmbeddedStore
from data.stream import Storage


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
    """Writes the shards of the configured source where they are missing, then checks that both splits are there.

    Raises DataError when the store, the credentials, the bucket or the shards aren't right.
    """
    storage: Storage = instantiate(config.data.storage)
    if config.data.prepare is not None:
        source = instantiate(config.data.prepare)
        manifest = prepare(source, config.data.url, storage, config.data.samples_per_shard)
        # The report names the pictures' authors and licence.
        (Path(config.run.folder) / "attribution.txt").write_text(manifest["attribution"] + "\n")
    storage.check(config.data.train)


def training_index(config: DictConfig, storage: Storage) -> Index:
    """Where every training sample lies. Raises DataError when there are fewer than a step takes."""
    index = Index.load(_urls(config, "data.train"), storage)
    if len(index) < config.batch.global_size:
        raise DataError(
            f"data.train={config.data.train}: {len(index)} samples are fewer than batch.global_size="
            f"{config.batch.global_size}; name more shards or take a smaller batch"
        )
    return index


def _urls(config: DictConfig, key: str) -> str | list[str]:
    value = OmegaConf.select(config, key)
    return OmegaConf.to_container(value) if OmegaConf.is_list(value) else str(value)  # type: ignore[return-value]


def held_out_samples(config: DictConfig, storage: Storage) -> Batch:
    """Every good sample of data.held_out as one batch, in an order that mixes the shards and is always the same."""
    index = Index.load(_urls(config, "data.held_out"), storage)
    loader = Loader(
        index,
        storage,
        seed=0,
        image_size=config.data.image_size,
        tokenize=instantiate(config.tokenizer),
        global_batch=1,
        micro_batch=1,
        max_bad_share=config.data.max_bad_share,
    )
    with contextlib.closing(loader.batches()) as batches:
        # A bad sample is replaced by another one, which is in the split anyway: keep the good ones alone.
        good = [batch for batch in itertools.islice(batches, len(index)) if not batch.faults]
    return Batch(
        images=torch.cat([batch.images for batch in good]),
        tokens=torch.cat([batch.tokens for batch in good]),
        captions=[caption for batch in good for caption in batch.captions],
        numbers=torch.cat([batch.numbers for batch in good]),
    )
