"""`ldm prepare`: writes a data set as tar shards with an index, to a folder or straight to an object store."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from training import compose
from training.errors import ConfigurationError


def main() -> None:
    """Entry point of `ldm prepare` and `python -m training.prepare`."""
    from data.errors import DataError

    compose.command("prepare", run, (ConfigurationError, DataError), shown_in_help=("source=openmoji",))


def run(config: DictConfig) -> None:
    """Writes the shards; does nothing when they are complete already."""
    import logging
    import sys

    from hydra.utils import instantiate

    from data.prepare import prepare

    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigurationError(missing[0], "???", "it has no value; set it on the command line")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    storage = instantiate(config.storage)
    prepare(instantiate(config.source), config.url, storage, config.samples_per_shard)


if __name__ == "__main__":
    main()
