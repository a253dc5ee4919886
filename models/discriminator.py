"""The adversary of first-stage training: a patch discriminator and its hinge losses (LDM App. G)."""

import torch.nn.functional as F
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches of an image (Isola et al. 2017, Sec. 3.2.2, "PatchGAN").

    layers: strided convolutions; each doubles the width, up to 8 x channels. Normalises over the batch,
    so a micro-batch of one image works but several are steadier.
    Raises ValueError when layers < 1.
    """

    def __init__(self, in_channels: int = 3, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers={layers}: give 1 or more")
        self.in_channels = in_channels
        self.smallest_image = 3 * 2**layers
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        steps: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            steps += [
                # No bias: the normalisation that follows would remove it.
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=2 if i < layers else 1, padding=1, bias=False),
                # It only ever judges in training, by the batch's own statistics: averages of them would be unused, and
                # float32 among bfloat16 weights.
                nn.BatchNorm2d(widths[i], track_running_stats=False),
                nn.LeakyReLU(0.2),
            ]
        steps.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.net = nn.Sequential(*steps)
        for module in self.net:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 1, h, w] for images x, float [B, in_channels, H, W] in [-1, 1]; higher means real.

        Raises ValueError for another shape, or an image too small for one patch.
        """
        smallest = self.smallest_image
        if x.ndim != 4 or x.shape[1] != self.in_channels or min(x.shape[2:]) < smallest:
            raise ValueError(
                f"images have shape {list(x.shape)}: this discriminator takes [B, {self.in_channels}, H, W] "
                f"with H and W at least {smallest}; use larger images or fewer layers"
            )
        return self.net(x)


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Mean of max(0, 1 - real) and max(0, 1 + fake), halved: a scalar. Logits of any shape."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """The generator's side of the hinge game, -mean(fake): a scalar. Logits of any shape."""
    return -fake.mean()
