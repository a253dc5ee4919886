"""Whether checkpoints can go to where `checkpoint.upload` says, and whether what lies there is this run's."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from training.errors import ConfigurationError

KEY = "checkpoint.upload"


def check_upload_settings(config: DictConfig) -> None:
    """Raises ConfigurationError for settings that can't be, without asking the store."""
    url = config.checkpoint.upload
    if url is None:
        return
    if not isinstance(url, str) or not url:
        raise ConfigurationError(KEY, url, "give the URL of a folder, such as s3://bucket/${run.name}, or null")
    if url.startswith(("http://", "https://")):
        raise ConfigurationError(KEY, url, "nothing can be written over HTTP; give s3://bucket/..., or another store")
    path = url.removeprefix("file://")
    if "://" not in path and Path(path).resolve() == Path(config.run.folder).resolve():
        raise ConfigurationError(KEY, url, "checkpoints lie there anyway; give a folder in a store, or null")


def check_upload_place(config: DictConfig) -> None:
    """Asks whether the store is there, and changes nothing. Raises DataError."""
    from training.components import component
    from training.dataset import about

    if config.checkpoint.upload is not None and not config.data.embedded_store:
        with about(KEY, config.checkpoint.upload):
            component(config, "checkpoint.storage").check_writable_place(config.checkpoint.upload)


def check_upload(config: DictConfig, saved_step: int) -> None:
    """Writes and removes a small object, and looks at what is there already; before any rank starts.

    saved_step: of the newest checkpoint in the run's folder. Raises DataError when nothing can be written there, and
    ConfigurationError when another run's checkpoints are there, or newer ones of another model.
    """
    from training.checkpoint_files import CheckpointError, check_same_batch, check_same_parameters
    from training.checkpoint_store import CONFIG, CheckpointStore
    from training.components import component
    from training.dataset import about
    from training.modules import parameter_shapes

    url = config.checkpoint.upload
    if url is None:
        return
    with about(KEY, url):
        store = CheckpointStore(url, component(config, "checkpoint.storage"))
        store.storage.check_writable(url)
        there = store.run_file(CONFIG)
        newest = store.newest_readable()
    name = None if there is None else OmegaConf.select(OmegaConf.create(there.decode()), "run.name")
    if name not in (None, config.run.name):
        raise ConfigurationError(
            KEY, url, f"the run {name} is there, this is {config.run.name}; give another folder, or its run.name"
        )
    if newest is not None and newest[1].step > saved_step:
        try:
            check_same_parameters(newest[1], parameter_shapes(config), store.place(newest[0]))
            check_same_batch(newest[1], config.batch.global_size, store.place(newest[0]))
        except CheckpointError as error:
            raise ConfigurationError(KEY, url, str(error)) from None
