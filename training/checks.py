"""What can be known to be wrong before any process group starts."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from training.compose import CONFIG_FOLDER, choices
from training.data_sources import BAD_SHARDS, sources_of
from training.engine_checks import check_engine
from training.engine_settings import COMPILE_MODES, PRECISIONS, STAGES
from training.errors import ConfigurationError
from training.offload_checks import check_offload
from training.planning.cluster import FOLDER as GPUS
from training.policy_checks import check_keep_best, check_looks, check_loss_spike, check_measurements
from training.schedule import DECAYS
from training.tracker import MODES, X_AXES
from training.upload_checks import check_upload_settings

TASKS = ("diffusion", "autoencoder", "noisy_classifier")
RECONSTRUCTIONS = ("likelihood", "mean")
CHOICES: dict[str, tuple[object, ...]] = {
    "task.name": TASKS,
    "task.prediction": ("epsilon", "v", "z_0"),  # those of models.prediction, whose import would load torch
    "task.loss": ("l2", "l1"),  # those of models.objective
    "task.reconstruction": RECONSTRUCTIONS,
    "engine.zero_stage": STAGES,
    "engine.precision": PRECISIONS,
    "engine.compile": (None, *COMPILE_MODES),
    "learning_rate.decay": DECAYS,
    "tracker.mode": MODES,
    "tracker.x_axis": X_AXES,
    "tracker.gpu": (None, *choices(GPUS)),
    "data.bad_shards": BAD_SHARDS,
    "monitor.protocol": (None, *sorted(path.stem for path in (CONFIG_FOLDER / "protocol").glob("*.yaml"))),
}
WHOLE_NUMBERS = {
    **dict.fromkeys(("steps", "batch.global_size", "batch.micro_size"), 1),
    **dict.fromkeys(("data.image_size", "data.samples_per_shard", "checkpoint.every", "checkpoint.keep"), 1),
    **dict.fromkeys(("monitor.every", "monitor.sampler_steps", "monitor.final_sampler_steps", "monitor.pictures"), 1),
    **dict.fromkeys(("monitor.captions", "monitor.final_captions"), 1),
    **dict.fromkeys(("run.seed", "data.workers", "learning_rate.warmup_steps"), 0),
    "task.adversary_start": 0,
    **dict.fromkeys(("run.max_failures", "loss_spike.window", "loss_spike.most_in_a_row"), 1),
    **dict.fromkeys(("tracker.detail_every", "alerts.window"), 1),
}
"""Settings that are whole numbers, and the least that each may be."""
WHOLE_OR_NULL = (
    "task.revive_codes_every",
    "checkpoint.keep_every",
    "monitor.measure_every",
    "learning_rate.warmup_images",
)
SHARES = ("data.max_bad_share", "learning_rate.floor")
POSITIVE = ("learning_rate.base", "data.storage.timeout_seconds", "checkpoint.storage.timeout_seconds")
NOT_NEGATIVE = (
    "data.storage.patience_seconds",
    "checkpoint.storage.patience_seconds",
    "task.offset_noise",
    "task.regulariser_weight",
    "task.adversary_weight",
    "optimizer.weight_decay",
    "alerts.again_minutes",
)
ALERTS = ("alerts.data_wait", "alerts.goodput", "alerts.loss_spike", "alerts.slow_rank")
USER_IN_URL = re.compile(r"://[^/@\s]+@")
ABSENT = object()


def check_settings(config: DictConfig, world: int) -> None:
    """Raises ConfigurationError for values that can't work, alone or together. Needs no data and builds no model."""
    _has_every_value(config)
    _holds_no_credentials(config)
    for key, value in _present(config, CHOICES):
        if value not in CHOICES[key]:
            choices = ", ".join("null" if choice is None else str(choice) for choice in CHOICES[key])
            raise ConfigurationError(key, value, f"choose one of {choices}")
    for key, value in _present(config, WHOLE_NUMBERS):
        _whole_number(key, value, WHOLE_NUMBERS[key])
    for key, value in _present(config, WHOLE_OR_NULL):
        if value is not None:
            _whole_number(key, value, 1)
    dropout = OmegaConf.select(config, "task.dropout") or {}
    for key, value in (*_present(config, SHARES), *((f"task.dropout.{name}", rate) for name, rate in dropout.items())):
        if not _is_number(value) or not 0 <= value <= 1:
            raise ConfigurationError(key, value, "it must be a number from 0 to 1")
    for key, value in _present(config, NOT_NEGATIVE):
        if not _is_number(value) or value < 0:
            raise ConfigurationError(key, value, "it must be a number of at least 0")
    for key, value in _present(config, ALERTS):
        if value is not None and (not _is_number(value) or value <= 0):
            raise ConfigurationError(key, value, "it must be a number above 0; or null, for no such alert")
    for key, value in _present(config, ("task.snr_weight",)):
        _check_snr_weight(key, value)
    sources_of(config)
    for key, value in _present(config, POSITIVE):
        if not _is_number(value) or value <= 0:
            raise ConfigurationError(key, value, "it must be a number above 0")
    for key, value in _present(config, ("task.perceptual_weights",)):
        if value is not None and not Path(value).is_file():
            raise ConfigurationError(
                key,
                value,
                "no such file; give torchvision's VGG-16 weights, or null to train without the perceptual loss",
            )
    side, size = config.data.scaled_side, config.data.image_size
    if side is not None and (not isinstance(side, int) or isinstance(side, bool) or side < size):
        remedy = f"it must be a whole number of at least data.image_size={size}, or null"
        raise ConfigurationError("data.scaled_side", side, remedy)
    if config.learning_rate.warmup_steps and config.learning_rate.warmup_images is not None:
        remedy = f"learning_rate.warmup_steps={config.learning_rate.warmup_steps} is given too; set one of the two"
        raise ConfigurationError(
            "learning_rate.warmup_images", config.learning_rate.warmup_images, f"{remedy}: null, or 0 steps"
        )
    gap = config.data.reducing_gap
    if gap is not None and (not _is_number(gap) or gap < 1):
        raise ConfigurationError("data.reducing_gap", gap, "it must be a number of at least 1, or null")
    check_loss_spike(config)
    check_looks(config)
    check_measurements(config)
    check_keep_best(config)
    check_offload(config)
    _watchdog_is_patient(config)
    check_upload_settings(config)
    _latents_can_be(config)
    check_engine(config)
    _buckets_can_be(config)
    betas = list(config.optimizer.betas)
    if len(betas) != 2 or not all(_is_number(beta) and 0 <= beta < 1 for beta in betas):
        raise ConfigurationError(
            "optimizer.betas", betas, "it takes two numbers from 0 to below 1, such as [0.9,0.999]"
        )
    _batch_divides(config, world)


def _present(config: DictConfig, keys: Any) -> Iterator[tuple[str, Any]]:
    """Key and value of those settings that the task has."""
    for key in keys:
        value = OmegaConf.select(config, key, default=ABSENT)
        if value is not ABSENT:
            yield key, value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _has_every_value(config: DictConfig) -> None:
    leaves = list(_leaves(OmegaConf.to_container(config, resolve=False)))
    missing = [key for key, value in leaves if value == "???"]
    if config.data.prepare is None and not any("${data.url}" in str(value) for _, value in leaves):
        missing = [key for key in missing if key != "data.url"]  # sources and held-out samples are named themselves
    if missing:
        others = f" (also missing: {', '.join(missing[1:])})" if missing[1:] else ""
        raise ConfigurationError(missing[0], "???", f"it has no value; give it on the command line{others}")
    try:
        OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        key = str(error.full_key or "")
        raw = dict(_leaves(OmegaConf.to_container(config, resolve=False))).get(key)
        reason = str(error).splitlines()[0]
        raise ConfigurationError(key, raw, f"{reason}; refer to a setting that `--cfg job` lists") from None


def _leaves(node: object, place: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, f"{place}.{name}" if place else str(name))
    elif isinstance(node, list):
        for value in node:
            yield from _leaves(value, place)
    else:
        yield place, node


def _holds_no_credentials(config: DictConfig) -> None:
    """Configurations are shown, kept with the run and sent to the dashboard."""
    for key, value in _leaves(OmegaConf.to_container(config, resolve=True)):
        if isinstance(value, str) and USER_IN_URL.search(value):
            raise ConfigurationError(
                key,
                USER_IN_URL.sub("://***@", value),
                "credentials don't belong into a configuration; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                "name an AWS profile in data.storage.profile",
            )


def _whole_number(key: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        or_null = ", or null" if key in WHOLE_OR_NULL else ""
        raise ConfigurationError(key, value, f"it must be a whole number of at least {least}{or_null}")


def _check_snr_weight(key: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, DictConfig) or set(value) != {"gamma", "power"}:
        raise ConfigurationError(key, value, "it must be {gamma: 5, power: 1}, say, as of min-SNR; or null")
    if value.gamma is not None and (not _is_number(value.gamma) or value.gamma <= 0):
        raise ConfigurationError(f"{key}.gamma", value.gamma, "it must be a number above 0, 5 is usual; or null")
    if not _is_number(value.power) or value.power < 0:
        raise ConfigurationError(f"{key}.power", value.power, "it must be a number of at least 0")


def _watchdog_is_patient(config: DictConfig) -> None:
    """It must not end a run that waits for its store."""
    seconds, patience = config.watchdog.seconds, config.data.storage.patience_seconds
    if seconds is not None and (not _is_number(seconds) or seconds <= patience):
        remedy = (
            f"it must be a number above data.storage.patience_seconds={patience:g}, and above a step's seconds; or null"
        )
        raise ConfigurationError("watchdog.seconds", seconds, remedy)


def _latents_can_be(config: DictConfig) -> None:
    """What is encoded beforehand can't be drawn anew for each sample number."""
    latents, side = config.data.latents, config.data.scaled_side
    if latents is None:
        return
    if config.task.name == "autoencoder":
        raise ConfigurationError("data.latents", latents, "a first stage trains on images; set it to null")
    if side not in (None, config.data.image_size):
        raise ConfigurationError(
            "data.scaled_side",
            side,
            f"random squares can't be encoded beforehand and data.latents={latents}; set one of the two to null",
        )


def _buckets_can_be(config: DictConfig) -> None:
    """Other tasks know the size of what they train on from the start."""
    buckets, task = config.data.buckets, config.task.name
    if buckets is None:
        return
    if task != "diffusion":
        raise ConfigurationError("data.buckets", buckets, f"task.name={task} takes squares alone; set it to null")
    if config.data.latents is not None:
        latents = config.data.latents
        raise ConfigurationError("data.buckets", buckets, f"data.latents={latents} are of squares; set one to null")


def _batch_divides(config: DictConfig, world: int) -> None:
    together = world * config.batch.micro_size
    if config.batch.global_size % together:
        choices = neighbours(config.batch.global_size, together)
        raise ConfigurationError(
            "batch.global_size",
            config.batch.global_size,
            f"not divisible by {world} ranks x batch.micro_size={config.batch.micro_size} = {together}; "
            f"choose {choices}, or another batch.micro_size or run.ranks",
        )


def neighbours(value: int, factor: int) -> str:
    """The nearest multiples of `factor` around `value`, in words."""
    below = value // factor * factor
    return " or ".join(str(choice) for choice in (below, below + factor) if choice)


def local_ranks(config: DictConfig) -> int:
    """How many processes this machine starts when no launcher has: run.ranks, or one a GPU, or one."""
    if config.run.ranks is not None:
        _whole_number("run.ranks", config.run.ranks, 1)
        return int(config.run.ranks)
    import torch

    return max(1, torch.cuda.device_count())


def threads_a_rank(ranks: int) -> int:
    """CPU threads for each of the ranks on this machine."""
    return max(1, (len(os.sched_getaffinity(0))) // ranks)
