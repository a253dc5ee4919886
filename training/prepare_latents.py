"""`ldm prepare latents`: encodes the images of an experiment's data.train once; training then reads data.latents.

Takes the settings of `ldm train`, and runs on ranks as it does. The same command goes on where it stopped, with any
number of ranks: shards that are written stay. Exit status as of `ldm train`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from omegaconf import DictConfig

from training import compose
from training.errors import ConfigurationError
from training.job import Job
from training.job import run as run_job

if TYPE_CHECKING:
    from training.distributed import Distributed

PATIENCE_MINUTES = 7 * 24 * 60  # a rank whose shards are read slowly may need so long


def main() -> None:
    """Entry point of `ldm prepare latents` and `python -m training.prepare_latents`."""
    # The errors to be told in one line are caught in the job: to name them here, --help would have to import torch.
    compose.command("prepare_latents", run, (), shown_in_help=("experiment=demo",))


def run(config: DictConfig) -> None:
    """Starts the local ranks, or is one of the ranks that a launcher started."""
    if config.share.of > 1:  # shares run at the same time, and a run folder has one job at a time
        config.run.folder = f"{config.run.folder}/share-{config.share.number}-of-{config.share.of}"
    run_job(config, Job("training.prepare_latents", check, make_ready, encode, finished, PATIENCE_MINUTES))


def check(config: DictConfig, world: int) -> None:
    """Everything that can be known to be wrong without touching the data. Raises ConfigurationError."""
    from data.latents import PRECISIONS
    from training.checks import check_settings
    from training.components import component
    from training.model_checks import check_models

    if config.data.latents is None:
        raise ConfigurationError("data.latents", None, "name the folder that the latents are to be written to")
    if config.precision not in PRECISIONS:
        raise ConfigurationError("precision", config.precision, f"choose one of {', '.join(PRECISIONS)}")
    number, of = config.share.number, config.share.of
    if not 0 <= number < of:
        raise ConfigurationError("share.number", number, f"choose one of 0 ... {of - 1}, as share.of={of}")
    check_settings(config, 1)  # any number of ranks will do: they share shards, and no batch
    check_models(config)
    component(config, "first_stage")


def make_ready(config: DictConfig) -> None:
    """The shards of images with their index, and the keys of the latents' folders.

    Raises ConfigurationError when a folder has another key already: its latents were made with other settings.
    """
    from data.latents import LatentsKey
    from data.stream import Storage
    from training import dataset
    from training.components import component
    from training.data_sources import image_sources_of, latents_folder, without_latents
    from training.latents_key import same_key, wanted_key, weights_digest

    images = without_latents(config)
    dataset.make_ready(images)
    storage: Storage = component(config, "data.storage")
    storage.check_writable_place(config.data.latents)
    first_stage = weights_digest(component(config, "first_stage"))
    for source, indexed in zip(image_sources_of(config), dataset.training_sources(images, storage), strict=True):
        folder = latents_folder(config.data.latents, source.name)
        wanted = wanted_key(config, source, first_stage, config.precision, indexed.index.fingerprint)
        found = LatentsKey.read(folder, storage)
        if found is None:
            wanted.write(folder, storage)
        else:
            same_key(config, source, found, wanted)


def encode(config: DictConfig, ranks: Distributed) -> bool:
    """One rank's share of the shards."""
    from training.encode import encode_sources

    return encode_sources(config, ranks)


def finished(config: DictConfig) -> bool:
    """Whether every source has its latents, or its part of them where this is one share of several."""
    from data.index import INDEX_NAME
    from data.stream import Storage, join
    from training.components import component
    from training.data_sources import sources_of
    from training.encode import share_is_written

    storage: Storage = component(config, "data.storage")
    if config.share.of > 1:
        return share_is_written(config, storage)
    return all(storage.exists(join(str(source.urls), INDEX_NAME)) for source in sources_of(config))


if __name__ == "__main__":
    main()
