"""From a protocol's metrics, as its file has them, to metrics with their networks; each network is loaded once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from evaluation.features import FeatureNetwork
from evaluation.metrics.metric import Metric, Network, Sizes

NETWORKS = ("features", "open_clip", "vgg16")


@dataclass
class Networks:
    """Networks of measures.

    features: the protocol's own. clip_weights, perceptual_weights: where those of CLIP and of VGG16 lie. device: where
    they run.
    """

    features: FeatureNetwork
    clip_weights: str | None = None
    perceptual_weights: str | None = None
    device: torch.device | str = "cpu"
    _loaded: dict[str, Network] = field(default_factory=dict)

    def load(self, settings: Mapping[str, Any]) -> Network:
        """The network of these settings: its name, and what that network is told. Raises ValueError."""
        name, told = settings.get("name"), {key: value for key, value in settings.items() if key != "name"}
        if name == "features" and not told:
            return self.features
        key = json.dumps(dict(settings), sort_keys=True)
        if key not in self._loaded:
            if name == "vgg16" and set(told) <= {"sha256"}:
                from evaluation.vgg16 import Vgg16

                self._loaded[key] = Vgg16(self.perceptual_weights, told.get("sha256"), self.device)
            elif name == "open_clip" and {"model"} <= set(told) <= {"model", "sha256", "pretrained"}:
                from evaluation.open_clip_features import OpenClip

                self._loaded[key] = OpenClip(weights=self.clip_weights, device=self.device, **told)
            else:
                raise ValueError(
                    f"network={dict(settings)}: its name must be one of {', '.join(NETWORKS)}; open_clip takes a "
                    "model, the weights' sha256 and their name, pretrained; vgg16 the sha256"
                )
        return self._loaded[key]

    def metrics(self, settings: Mapping[str, Mapping[str, Any]], sizes: Sizes) -> dict[str, Metric]:
        """The metrics of a protocol, ready for so many images. Raises ValueError when one can't be had."""
        made = {}
        for name, given in settings.items():
            arguments = {key: value for key, value in given.items() if key != "network"}
            if "network" in given:
                arguments["network"] = self.load(given["network"])
            try:
                made[name] = instantiate({"_target_": arguments.pop("_target_")}, **arguments, sizes=sizes)
            except InstantiationException as error:
                raise ValueError(f"metric {name}: {error.__cause__ or error}") from error
        return made
