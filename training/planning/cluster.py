"""The machines that a plan is for: how many, and of which GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from training.compose import CONFIG_FOLDER, choices
from training.errors import ConfigurationError

FOLDER = "gpu"


@dataclass(frozen=True)
class Gpu:
    """What a GPU's data sheet says, dense rates without sparsity; and a price, which is an assumption.

    link: to the GPUs of its node; network: its share of what leads to other nodes; both in one direction.
    """

    name: str
    bf16_flops_per_second: float
    fp32_flops_per_second: float
    memory_bytes: float
    memory_bytes_per_second: float
    link_bytes_per_second: float
    network_bytes_per_second: float
    price_per_hour: float


@dataclass(frozen=True)
class Cluster:
    """`nodes` machines with `gpus_per_node` GPUs each, one rank a GPU."""

    gpu: Gpu
    nodes: int
    gpus_per_node: int

    @property
    def ranks(self) -> int:
        """All GPUs."""
        return self.nodes * self.gpus_per_node

    def of(self, ranks: int) -> Cluster:
        """The same machines, as many as so many ranks need."""
        within = min(ranks, self.gpus_per_node)
        return replace(self, nodes=-(-ranks // within), gpus_per_node=within)


def cluster_of(config: DictConfig) -> Cluster:
    """From the settings below `cluster`. Raises ConfigurationError for an unknown GPU, or numbers that can't be."""
    settings = config.cluster
    gpu = gpu_named("cluster.gpu", settings.gpu)
    for key in ("nodes", "gpus_per_node"):
        value: Any = settings[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"cluster.{key}", value, "it must be a whole number of at least 1")
    price: Any = settings.price_per_gpu_hour
    if price is not None:
        if not isinstance(price, int | float) or isinstance(price, bool) or not 0 <= price < math.inf:
            raise ConfigurationError("cluster.price_per_gpu_hour", price, "it must be a number of at least 0, or null")
        gpu = replace(gpu, price_per_hour=float(price))
    return Cluster(gpu, settings.nodes, settings.gpus_per_node)


def gpu_named(key: str, name: str) -> Gpu:
    """The GPU that a setting names. Raises ConfigurationError where there is no such file."""
    known = choices(FOLDER)
    if name not in known:
        raise ConfigurationError(key, name, f"choose one of {', '.join(known)}")
    card = OmegaConf.load(CONFIG_FOLDER / FOLDER / f"{name}.yaml")
    return Gpu(**{field.name: card[field.name] for field in fields(Gpu)})  # type: ignore[index]
