"""An image that is concatenated to the latent as it is, for super-resolution."""

from torch import Tensor

from models.conditioners import Conditioner


def to_float(images: Tensor) -> Tensor:
    """Pixels uint8 [B, 3, H, W] as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1.0


class Image(Conditioner):
    """The low-resolution image itself, whose size is the latent's (LDM Sec. 4.4)."""

    part = "channels"

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, h, w] -> float32 [B, 3, h, w] in [-1, 1]."""
        return to_float(images)
