"""One part of a configuration made into an object, with errors that name its place."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from evaluation.weights import WeightsError
from training.compose import choices
from training.errors import ConfigurationError

if TYPE_CHECKING:
    from training.optimizers import Optimizer


def component(config: DictConfig, key: str) -> Any:
    """The object that `config` describes at `key`. Raises ConfigurationError when it can't be made."""
    with explained(config, key):
        return instantiate(OmegaConf.select(config, key))


def build_optimizer(config: DictConfig, parameters: Iterable[Any]) -> Optimizer:
    """The configured optimizer of these parameters, or groups of them (training.decay_groups).

    Raises ConfigurationError when it can't be made, or is none.
    """
    from training.optimizers import Optimizer

    settings = config.optimizer.copy()
    with open_dict(settings):
        del settings.no_decay  # which the groups are made by
    with explained(config, "optimizer"):
        optimizer = instantiate(settings, parameters, config.learning_rate.base, _convert_="all")
    if not isinstance(optimizer, Optimizer):
        remedy = f"it keeps no averages of the weights; choose optimizer={' or '.join(choices('optimizer'))}"
        raise ConfigurationError("optimizer._target_", config.optimizer._target_, remedy)
    return optimizer


@contextlib.contextmanager
def explained(config: DictConfig, key: str) -> Iterator[None]:
    """Turns Hydra's errors about the part at `key` into a ConfigurationError.

    A WeightsError passes as it is: it names its setting itself.
    """
    try:
        yield
    except InstantiationException as error:
        if isinstance(error.__cause__, ConfigurationError | WeightsError):
            raise error.__cause__ from None
        text = str(error)
        inner = re.search(r"full_key: (\S+)", text)  # Hydra tells the place of a nested part in its text alone
        place = inner.group(1) if inner else key
        target = OmegaConf.select(config, f"{place}._target_")
        reason = " ".join(str(error.__cause__ or text.partition("full_key:")[0]).split())
        raise ConfigurationError(place, target, f"{reason}; correct it, or see `--cfg job`") from None
