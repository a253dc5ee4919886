"""Whether what a run is to decide for itself can be: which updates it leaves out, which checkpoint it keeps, and which
parameters don't decay."""

from __future__ import annotations

import math
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from training.compose import CONFIG_FOLDER
from training.errors import ConfigurationError
from training.loss_spikes import ACTIONS
from training.metrics import metric

MEASURED_IN_TRAINING = {
    "draws": "samples",
    "reference": "originals",
    "picture_file": "png",
    "precision": "float32",
    "weights": "ema",
}
"""Settings of a protocol that monitors know no other value of."""
MODES = ("min", "max")  # those of training.retention, whose import would load torch


def check_loss_spike(config: DictConfig) -> None:
    """Raises ConfigurationError."""
    settings = config.loss_spike
    if settings.action not in ACTIONS:
        choices = ", ".join("null" if action is None else action for action in ACTIONS)
        raise ConfigurationError("loss_spike.action", settings.action, f"choose one of {choices}")
    for key in ("loss", "gradient_norm"):
        value = settings[key]
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not (number and value > 1):
            remedy = "it must be a number above 1, in medians; or null, for no limit"
            raise ConfigurationError(f"loss_spike.{key}", value, remedy)
    if settings.action is None:
        return
    if settings.loss is None and settings.gradient_norm is None:
        remedy = "without loss_spike.loss and loss_spike.gradient_norm nothing is a spike; give one of them"
        raise ConfigurationError("loss_spike.action", settings.action, remedy)
    if config.task.name == "autoencoder":
        remedy = (
            "a first stage and its adversary are updated in turn, and neither can be left out alone; set it to null"
        )
        raise ConfigurationError("loss_spike.action", settings.action, remedy)


def check_measurements(config: DictConfig) -> None:
    """What a diffusion model is measured by while it trains. Raises ConfigurationError."""
    if config.task.name != "diffusion":
        return
    settings, key = config.monitor, "monitor.protocol"
    if settings.protocol is None:
        if settings.measure_every is not None:
            raise ConfigurationError(key, None, "monitor.measure_every needs one of conf/protocol; set it too")
        return
    protocol = dict(OmegaConf.load(CONFIG_FOLDER / "protocol" / f"{settings.protocol}.yaml"))
    for name, only in MEASURED_IN_TRAINING.items():
        if (found := protocol.get(name, only)) != only:
            remedy = f"its {name} is {found}, and training measures {only} alone; choose another, such as openmoji"
            raise ConfigurationError(key, settings.protocol, remedy)
    if protocol["features"] == "inception" and settings.feature_weights is None:
        remedy = f"{key}={settings.protocol} needs the path or URL of weights-inception-2015-12-05-6726825d.pth"
        raise ConfigurationError("monitor.feature_weights", None, remedy)
    weights = settings.feature_weights
    if weights is not None and "://" not in weights and not Path(weights).is_file():
        raise ConfigurationError("monitor.feature_weights", weights, "there is no such file")


def check_looks(config: DictConfig) -> None:
    """What a diffusion model is looked at by while it trains. Raises ConfigurationError."""
    if config.task.name != "diffusion":
        return
    settings = config.monitor
    for key in ("prompts", "captions_with"):
        texts = settings[key]
        if len(set(texts)) < len(texts) or not all(isinstance(text, str) and text.strip() for text in texts):
            remedy = "it must be a list of texts, none of them twice, such as ['red heart', 'grinning face']; or []"
            raise ConfigurationError(f"monitor.{key}", texts, remedy)
    if settings.prompts and set(config.inputs) != {"caption"}:
        remedy = f"the model's inputs are {sorted(config.inputs)}, and prompts make a 'caption' alone; set it to []"
        raise ConfigurationError("monitor.prompts", settings.prompts, remedy)


def check_keep_best(config: DictConfig) -> None:
    """Raises ConfigurationError."""
    best, key = config.checkpoint.keep_best, "checkpoint.keep_best"
    if best is None:
        return
    if not isinstance(best, DictConfig) or set(best) != {"metric", "mode"}:
        raise ConfigurationError(key, best, "it must be null, or such as {metric: eval/psnr, mode: max}")
    if best.mode not in MODES:
        raise ConfigurationError(f"{key}.mode", best.mode, f"choose one of {', '.join(MODES)}")
    if metric(str(best.metric)) is None:
        raise ConfigurationError(f"{key}.metric", best.metric, "a run logs no such metric; docs/metrics.md lists them")
    if not best.metric.startswith("eval/"):
        return
    setting = "measure_every" if config.task.name == "diffusion" else "every"
    every, looks = config.checkpoint.every, config.monitor[setting]
    if looks is None:
        remedy = "a diffusion model is measured before and after training only, unless by monitor.measure_every; set it"
        raise ConfigurationError(f"{key}.metric", best.metric, remedy)
    if every % looks:
        remedy = f"a checkpoint is judged by what is measured at its step: take a multiple of monitor.{setting}={looks}"
        raise ConfigurationError("checkpoint.every", every, remedy)


def check_no_decay(config: DictConfig, kinds: Collection[str], names: Collection[str]) -> None:
    """kinds: that can be spared. names: of all parameters. Raises ConfigurationError."""
    spared, key = config.optimizer.no_decay, "optimizer.no_decay"
    if spared is None:
        return
    if not isinstance(spared, ListConfig) or not all(isinstance(entry, str) for entry in spared):
        raise ConfigurationError(key, spared, f"it must be null, or a list of {', '.join(kinds)} or patterns of names")
    for entry in spared:
        if entry not in kinds and not any(fnmatchcase(name, entry) for name in names):
            remedy = f"no parameter has such a name; choose of {', '.join(kinds)}, or patterns such as 'conditioners.*'"
            raise ConfigurationError(key, entry, remedy)
