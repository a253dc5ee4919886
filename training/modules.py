"""The trainable modules of a configuration. Imports no DeepSpeed: the checks build them on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn
from torch.overrides import TorchFunctionMode

from models.autoencoder import Autoencoder


class ReconstructionModule(nn.Module):
    """An autoencoder with the variance of its output, as one module for the engine.

    learned_variance: False keeps the log variance at 0.
    """

    def __init__(self, autoencoder: Autoencoder, learned_variance: bool) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        # One element and not a scalar: DeepSpeed can't broadcast parameters without a dimension.
        self.log_variance = nn.Parameter(torch.zeros(1), requires_grad=learned_variance)

    def forward(
        self, images: torch.Tensor, posterior_noise: torch.Tensor
    ) -> tuple[
        torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor], tuple[torch.Tensor, ...]
    ]:
        """images: float [B, 3, H, W] in [-1, 1]. Returns the reconstruction, the features that the decoder's last
        layer saw, the regulariser's penalty [], the log variance [1], the regulariser's statistics and its codes."""
        latents, penalty, statistics, codes = self.autoencoder.regularised(images, posterior_noise)
        features = self.autoencoder.last_features(latents)
        return self.autoencoder.to_image(features), features, penalty, self.log_variance, statistics, codes


def build_modules(config: DictConfig) -> dict[str, nn.Module]:
    """The trainable module of each engine, randomly initialised from run.seed, the same on every rank."""
    torch.manual_seed(config.run.seed)
    if config.task.name != "autoencoder":
        return {"model": instantiate(config.model)}
    return {
        "model": ReconstructionModule(instantiate(config.model), config.task.reconstruction == "likelihood"),
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
