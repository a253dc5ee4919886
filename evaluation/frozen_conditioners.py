"""The conditioners of a configuration that are not trained."""

from __future__ import annotations

from hydra.utils import instantiate
from omegaconf import DictConfig

from evaluation.weights import fill, read_weights
from models.conditioners import Conditioners


def build_frozen_conditioners(config: DictConfig) -> Conditioners:
    """Modules of config.frozen_conditioners, without their weights."""
    conditioners = Conditioners({name: instantiate(node) for name, node in config.frozen_conditioners.items()})
    return conditioners.eval().requires_grad_(False)


def load_frozen_conditioners(config: DictConfig) -> Conditioners:
    """The same with the weights of the safetensors files of config.frozen_weights, on the CPU in float32.

    Raises WeightsError when a file is missing, is no safetensors file, or holds another model.
    """
    conditioners = build_frozen_conditioners(config)
    for name, conditioner in conditioners.by_input().items():
        path, key = config.frozen_weights.get(name), f"frozen_weights.{name}"
        stored = read_weights(path, key, lambda: "give the path of the conditioner's weights as safetensors")
        fill(conditioner, conditioner.published(stored), path, key, f"frozen_conditioners.{name}")
    return conditioners
