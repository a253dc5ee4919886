"""`ldm prepare`: writes a data set as tar shards with an index, to a folder or straight to an object store.

The same command goes on where it stopped. Exit status 75 when Slurm (SIGUSR1) asked it to stop before the end.
"""

from __future__ import annotations

from types import FrameType

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
    import os
    import signal
    import sys

    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    from data.errors import DataError
    from data.prepare import prepare
    from data.stream import Storage

    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigurationError(missing[0], "???", "it has no value; set it on the command line")
    processes = config.processes if config.processes is not None else len(os.sched_getaffinity(0))
    if not isinstance(processes, int) or processes < 1:
        raise ConfigurationError("processes", processes, "it must be a whole number of at least 1, or null")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGUSR1, _stop)
    storage: Storage = instantiate(config.storage)
    storage.check_writable_place(config.url)
    try:
        criteria, share, source = (instantiate(config[key], _convert_="all") for key in ("criteria", "share", "source"))
    except InstantiationException as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from error
        raise
    prepare(source, config.url, storage, config.samples_per_shard, criteria, processes, share)


def _stop(number: int, frame: FrameType | None) -> None:
    """What is under way in other processes is finished; the rest is left to the next start."""
    from training.preemption import STOPPED_STATUS

    raise SystemExit(STOPPED_STATUS)


if __name__ == "__main__":
    main()
