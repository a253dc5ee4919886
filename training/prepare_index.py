"""`ldm prepare index`: reads the headers of tar shards that others wrote, and writes where each sample lies."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from training import compose
from training.errors import ConfigurationError


def main() -> None:
    """Entry point of `ldm prepare index` and `python -m training.prepare_index`."""
    from data.errors import DataError

    compose.command("prepare_index", run, (ConfigurationError, DataError))


def run(config: DictConfig) -> None:
    """Writes the index; shards that are indexed already are not read again."""
    import logging
    import os
    import sys

    from hydra.utils import instantiate

    from data.indexing import build_index
    from data.patterns import is_folder
    from training.data_sources import BAD_SHARDS, sizes_of, urls_of, where_of

    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigurationError(missing[0], "???", "it has no value; set it on the command line")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if config.bad_shards not in BAD_SHARDS:
        raise ConfigurationError("bad_shards", config.bad_shards, f"choose one of {', '.join(BAD_SHARDS)}")
    urls, storage = urls_of(config.url), instantiate(config.storage)
    if config.output is None and not (isinstance(urls, str) and is_folder(urls)):
        raise ConfigurationError("output", None, f"url={urls} is no folder; name one for the index")
    buckets = None
    if config.buckets is not None:
        size = OmegaConf.select(config, "buckets.image_size") if OmegaConf.is_dict(config.buckets) else None
        if not isinstance(size, int):
            remedy = "give {image_size: 512, step: 64, largest_aspect: 2}, those of the run; or null"
            raise ConfigurationError("buckets", config.buckets, remedy)
        others = {name: value for name, value in config.buckets.items() if name != "image_size"}
        buckets = sizes_of(others, size, "buckets")
    shards = storage.check(urls)  # an index that is there already doesn't stand for shards that came since
    build_index(
        shards,
        config.output or str(urls),
        storage,
        where_of(config.where, "where"),
        config.checksums,
        config.processes or len(os.sched_getaffinity(0)),
        config.bad_shards == "replace",
        buckets,
    )


if __name__ == "__main__":
    main()
