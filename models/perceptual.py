"""The perceptual distance of first-stage training (LDM App. G; Zhang et al. 2018, "LPIPS")."""

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# VGG16 up to its last rectified 3 x 3 convolution, by output width; "pool" halves the resolution.
VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)


class PerceptualLoss(nn.Module):
    """LPIPS distance with the VGG16 trunk, version 0.1; frozen (Zhang et al. 2018, Eq. 1).

    weights: a torchvision VGG16 state dict on disk, either whole (features.0.weight ...) or its features
    alone (0.weight ...), saved by torch.save. The five linear heads come with the lpips package.
    Raises FileNotFoundError when weights or heads aren't there, ValueError when they are something else.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        self.trunk = vgg16_trunk()
        self.trunk.load_state_dict(_trunk_weights(Path(weights), self.trunk.state_dict()), assign=True)
        self.heads = nn.ParameterList(_head_weights())  # each [1, width, 1, 1]
        # ImageNet's mean and deviation, moved from [0, 1] to images in [-1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of images x and y, both float [B, 3, H, W] in [-1, 1], at least 16 x 16: float [B].

        Differentiable in both. Raises ValueError for other shapes.
        """
        return self.distances(x, y)[0]

    def distances(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The distance of `forward`, and the one whose heads weigh all channels alike: float [B] each.

        The latter is the sum over layers of 1 - cosine, averaged over positions (Zhang et al. 2018, Sec. 3).
        """
        if x.shape != y.shape or x.ndim != 4 or x.shape[1] != 3 or min(x.shape[2:]) < 16:
            raise ValueError(
                f"images have shapes {list(x.shape)} and {list(y.shape)}: give two [B, 3, H, W] of one shape "
                "with H and W at least 16"
            )
        # One by one, so that no gradient is computed for the image that needs none.
        weighted, alike = [], []
        for a, b, head in zip(self._features(x), self._features(y), self.heads, strict=True):
            squares = (a - b).square()
            weighted.append(F.conv2d(squares, head).mean((1, 2, 3)))
            alike.append(squares.sum(1).mean((1, 2)) / 2)
        return torch.stack(weighted).sum(0), torch.stack(alike).sum(0)

    def _features(self, x: Tensor) -> list[Tensor]:
        """Unit feature vectors before each pooling and at the end: five of float [B, C_i, H/2^i, W/2^i]."""
        h = (x - self.shift) / self.scale  # [B, 3, H, W]
        features = []
        for layer in self.trunk:
            if isinstance(layer, nn.MaxPool2d):
                features.append(_unit(h))
            h = layer(h)
        return [*features, _unit(h)]


def vgg16_trunk() -> nn.Sequential:
    """VGG16's convolutions without weights: images [B, 3, H, W] to features [B, 512, H/16, W/16]."""
    layers: list[nn.Module] = []
    width = 3
    for entry in VGG16:
        if isinstance(entry, int):
            layers += [nn.Conv2d(width, entry, 3, padding=1), nn.ReLU(inplace=True)]
            width = entry
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def _unit(h: Tensor) -> Tensor:
    # The square root has no derivative at 0, where all features of a position are rectified away.
    norm = h.square().sum(1, keepdim=True).clamp_min(1e-20).sqrt()  # [B, 1, H, W]
    return h / (norm + 1e-10)


def _trunk_weights(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no VGG16 weights at {path}: save torchvision's vgg16 state dict there (nothing is downloaded)"
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    features = {name.removeprefix("features."): w for name, w in state.items() if "classifier" not in name}
    if {name: w.shape for name, w in features.items()} != {name: w.shape for name, w in expected.items()}:
        raise ValueError(f"{path} isn't a VGG16 state dict: it has {sorted(state)[:4]} ...")
    return features


def _head_weights() -> list[Tensor]:
    # Found, not imported: the import would bring torchvision's models with it.
    package = find_spec("lpips")
    if package is None or package.origin is None:
        raise FileNotFoundError("the package lpips isn't installed; its linear heads are needed: install it")
    path = Path(package.origin).parent / "weights" / "v0.1" / "vgg.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"] for i in range(5)]
