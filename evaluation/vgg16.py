"""VGG16's perceptual distances between images and their originals."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from evaluation.features import full_precision
from evaluation.metrics.metric import Pictures
from evaluation.weights import checked_file
from models.perceptual import PerceptualLoss

PUBLISHED = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"


class Vgg16:
    """LPIPS (learned weights) and PSIM (none) at the cost of one.

    Args:
        weights: path or URL of torchvision's vgg16-397923af.pth.
        sha256: that the file must have; None: that of torchvision's.
        device: where the network runs.

    Raises ValueError when the weights can't be read or are others.
    """

    widths: Mapping[str, int] = {}

    def __init__(self, weights: str | None, sha256: str | None = None, device: torch.device | str = "cpu") -> None:
        if weights is None:
            raise ValueError(
                "perceptual_weights=null: LPIPS and PSIM need torchvision's VGG16; set it to the path or URL of "
                "vgg16-397923af.pth (download.pytorch.org/models)"
            )
        path, found = checked_file(weights, sha256 or PUBLISHED)
        self.description = f"VGG16 (torchvision, ImageNet), weights sha256 {found}"
        self.device = torch.device(device)
        self._distance = PerceptualLoss(path).to(device)

    @torch.no_grad()
    def outputs(self, pictures: Pictures) -> Mapping[str, Tensor]:
        """lpips and psim, float32 [B] each; nothing where there are no originals."""
        if pictures.originals is None:
            return {}
        with full_precision(self.device):
            x, y = (images.to(self.device).float() / 127.5 - 1 for images in (pictures.images, pictures.originals))
            lpips, psim = self._distance.distances(x, y)
        return {"lpips": lpips, "psim": psim}
