"""A map of classes, brought to the latent's size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.conditioners import Conditioner


class SpatialRescaler(Conditioner):
    """One-hot maps halved `halvings` times, then mapped to a few channels by a 1 x 1 convolution (LDM Sec. 4.4).

    classes: numbers below it are classes, 182 of COCO-Stuff in the paper; a pixel with another number has none.
    channels: of the result.
    """

    part = "channels"

    def __init__(self, classes: int, channels: int, halvings: int) -> None:
        super().__init__()
        self.classes = classes
        self.halvings = halvings
        self.mix = nn.Conv2d(classes, channels, 1, bias=False)

    def forward(self, segmentation: Tensor) -> Tensor:
        """Class numbers uint8 or int64 [B, H, W] -> float [B, channels, H / 2^halvings, W / 2^halvings]."""
        known = torch.arange(self.classes, device=segmentation.device).view(1, -1, 1, 1)
        x = (segmentation[:, None] == known).to(self.mix.weight.dtype)  # [B, classes, H, W]
        for _ in range(self.halvings):
            x = F.interpolate(x, scale_factor=0.5, mode="bilinear")
        return self.mix(x)
