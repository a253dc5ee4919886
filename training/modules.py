"""The trainable modules of a configuration. Imports no DeepSpeed: the checks build them on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn
from torch.overrides import TorchFunctionMode

from models.autoencoder import AutoencoderKL


class ReconstructionModule(nn.Module):
    """An autoencoder with its learned output variance, as one module for the engine."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        # One element and not a scalar: DeepSpeed can't broadcast parameters without a dimension.
        self.log_variance = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor, posterior_noise: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """images: float32 [B, 3, H, W] in [-1, 1]. Returns the reconstruction, the features that the decoder's last
        layer saw, the KL in nats [B] and the log variance [1]."""
        posterior = self.autoencoder.encode(images)
        features = self.autoencoder.last_features(posterior.sample(posterior_noise))
        return self.autoencoder.to_image(features), features, posterior.kl(), self.log_variance


def build_modules(config: DictConfig) -> dict[str, nn.Module]:
    """The trainable module of each engine, randomly initialised from run.seed, the same on every rank."""
    torch.manual_seed(config.run.seed)
    if config.task.name == "diffusion":
        return {"model": instantiate(config.model)}
    return {
        "model": ReconstructionModule(instantiate(config.model)),
        "discriminator": instantiate(config.discriminator),
    }


def parameter_shapes(config: DictConfig) -> dict[str, dict[str, list[int]]]:
    """Shape of every trainable parameter by engine and name, without allocating any."""
    with torch.device("meta"), WithoutInitialisation():
        modules = build_modules(config)
    return {
        engine: {name: list(p.shape) for name, p in module.named_parameters() if p.requires_grad}
        for engine, module in modules.items()
    }


class WithoutInitialisation(TorchFunctionMode):
    """Leaves out torch.nn.init's functions: meta tensors have no values, and drawing them loads torch's compiler."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
