"""What can be known to be wrong before any process group starts."""

from __future__ import annotations

import os
from typing import Any

from omegaconf import DictConfig, OmegaConf

from training.errors import ConfigurationError

TASKS = ("diffusion", "autoencoder")


def check_settings(config: DictConfig, world: int) -> None:
    """Raises ConfigurationError for values that can't work, alone or together. Needs no data and builds no model."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigurationError(missing[0], "???", "it has no value; set it on the command line or in the experiment")
    if config.task.name not in TASKS:
        raise ConfigurationError("task.name", config.task.name, f"choose one of {', '.join(TASKS)}")
    for key in (
        "steps",
        "batch.global_size",
        "batch.micro_size",
        "data.image_size",
        "checkpoint.every",
        "checkpoint.keep",
    ):
        _positive_integer(config, key)
    _batch_divides(config, world)


def _positive_integer(config: DictConfig, key: str) -> None:
    value: Any = OmegaConf.select(config, key)
    if not isinstance(value, int) or value < 1:
        raise ConfigurationError(key, value, "it must be a whole number of at least 1")


def _batch_divides(config: DictConfig, world: int) -> None:
    together = world * config.batch.micro_size
    if config.batch.global_size % together:
        below = config.batch.global_size // together * together
        choices = " or ".join(str(size) for size in (below, below + together) if size)
        raise ConfigurationError(
            "batch.global_size",
            config.batch.global_size,
            f"not divisible by {world} ranks x batch.micro_size={config.batch.micro_size} = {together}; "
            f"choose {choices}, or another batch.micro_size or run.ranks",
        )


def check_models(config: DictConfig) -> dict[str, dict[str, list[int]]]:
    """Builds the models without memory; raises ConfigurationError when they don't fit the images.

    Returns the shape of every trainable parameter, by engine and name.
    """
    import torch
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    from training.modules import parameter_shapes

    try:
        instantiate(config.engine)
        instantiate(config.learning_rate)
        shapes = parameter_shapes(config)
        with torch.device("meta"):
            first_stage = config.first_stage.autoencoder if config.task.name == "diffusion" else config.model
            factor, reason = instantiate(first_stage).downsampling, "the first stage's f"
            if config.task.name == "diffusion":
                stride = instantiate(config.model.unet).stride
                factor, reason = factor * stride, f"the first stage's f={factor} x the UNet's stride {stride}"
    except InstantiationException as error:
        key = str(getattr(error, "full_key", "") or "model")
        raise ConfigurationError(key, "...", str(error.__cause__ or error)) from None
    size = config.data.image_size
    if size % factor:
        below = size // factor * factor
        choices = " or ".join(str(choice) for choice in (below, below + factor) if choice)
        raise ConfigurationError("data.image_size", size, f"not divisible by {reason} = {factor}; choose {choices}")
    return shapes


def local_ranks(config: DictConfig) -> int:
    """How many processes this machine starts when no launcher has: run.ranks, or one a GPU, or one."""
    if config.run.ranks is not None:
        _positive_integer(config, "run.ranks")
        return int(config.run.ranks)
    import torch

    return max(1, torch.cuda.device_count())


def threads_a_rank(ranks: int) -> int:
    """CPU threads for each of the ranks on this machine."""
    return max(1, (len(os.sched_getaffinity(0))) // ranks)
