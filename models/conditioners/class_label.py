"""A class that the UNet itself embeds."""

from torch import Tensor

from models.conditioners import Conditioner


class ClassLabel(Conditioner):
    """Hands labels to a UNet that was built with classes; it adds their embedding to the timestep's (ADM Sec. 3)."""

    part = "labels"

    def forward(self, labels: Tensor) -> Tensor:
        """labels int64 [B] -> the same."""
        return labels
