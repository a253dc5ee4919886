"""The FID network in less time: what torch-fidelity's InceptionV3 computes, to rounding."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

SIDE = 299
SPATIAL_CHANNELS = 7
"""Of the 17 x 17 positions before the last convolutions, as many as make a vector of a usual length (sFID)."""


class Inception(nn.Module):
    """InceptionV3 of TensorFlow's 2015-12-05 graph, for evaluation alone.

    Batch normalisation is part of the convolutions; those of one input that see one pixel are one convolution, among
    them the one behind an average pooling, with which it commutes; images lie in memory pixel by pixel.

    network: torch-fidelity's FeatureExtractorInceptionV3, in evaluation mode, which is left as it is.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.stem = nn.ModuleList(
            _folded(getattr(network, f"Conv2d_{name}")) for name in ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")
        )
        self.mixed_5 = nn.Sequential(*(_BlockA(getattr(network, f"Mixed_5{letter}")) for letter in "bcd"))
        self.mixed_6a = _BlockB(network.get_submodule("Mixed_6a"))
        self.mixed_6 = nn.ModuleList(_BlockC(getattr(network, f"Mixed_6{letter}")) for letter in "bcde")
        self.mixed_7a = _BlockD(network.get_submodule("Mixed_7a"))
        self.mixed_7b = _BlockE(network.get_submodule("Mixed_7b"), average=True)
        self.mixed_7c = _BlockE(network.get_submodule("Mixed_7c"), average=False)
        self.register_buffer("classes", network.get_submodule("fc").get_parameter("weight").detach().clone())
        self.classes: Tensor
        self.to(memory_format=torch.channels_last).requires_grad_(False).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of images uint8 [B, 3, H, W]: features [B, 2048], logits without bias [B, 1008], spatial features [B, 2023].

        The spatial features are the first channels of the sixth mixed block's first branch (Nash et al. 2021, "sFID").
        """
        x = (resized(images.to(self.classes.dtype)) - 128) / 128  # [B, 3, 299, 299]
        x = x.contiguous(memory_format=torch.channels_last)
        for convolution in self.stem[:3]:
            x = _apply(convolution, x)  # [B, 64, 147, 147]
        x = F.max_pool2d(x, 3, 2)
        for convolution in self.stem[3:]:
            x = _apply(convolution, x)  # [B, 192, 71, 71]
        x = self.mixed_6a(self.mixed_5(F.max_pool2d(x, 3, 2)))  # [B, 768, 17, 17]
        spatial = x
        for number, block in enumerate(self.mixed_6):
            x = block(x)
            if number == 2:
                spatial = x[:, :SPATIAL_CHANNELS]  # a block's first channels are its first branch's
        features = self.mixed_7c(self.mixed_7b(self.mixed_7a(x))).mean(dim=(2, 3))  # [B, 2048]
        return features, features @ self.classes.T, spatial.flatten(1)


def resized(x: Tensor) -> Tensor:
    """Float [B, C, H, W] to [B, C, 299, 299] as TensorFlow 1 does it: bilinear, pixel 0 onto pixel 0, no smoothing."""
    for dim in (2, 3):
        size = x.shape[dim]
        place = torch.arange(SIDE, dtype=x.dtype, device=x.device) * torch.tensor(size / SIDE, dtype=x.dtype)
        low = place.long()
        share = (place - low).view(-1, *[1] * (3 - dim))
        x = torch.lerp(x.index_select(dim, low), x.index_select(dim, (low + 1).clamp_max(size - 1)), share)
    return x


def _folded(block: nn.Module) -> nn.Conv2d:
    """The block's convolution with its normalisation, folded in float64."""
    convolution, normalisation = (copy.deepcopy(block.get_submodule(name)).double() for name in ("conv", "bn"))
    assert isinstance(convolution, nn.Conv2d) and isinstance(normalisation, nn.BatchNorm2d)
    return fuse_conv_bn_eval(convolution, normalisation).float()


def _apply(convolution: nn.Module, x: Tensor) -> Tensor:
    return F.relu_(convolution(x))


class _Branches(nn.Module):
    """A mixed block's convolutions of its input itself that see one pixel, as one."""

    def __init__(self, block: nn.Module, names: list[str], pooled: bool) -> None:
        super().__init__()
        folded = [_folded(block.get_submodule(name)) for name in names]
        self.widths = [convolution.out_channels for convolution in folded]
        merged = nn.Conv2d(folded[0].in_channels, sum(self.widths), 1)
        merged.weight.data = torch.cat([convolution.weight.data for convolution in folded])
        biases = [convolution.bias.data for convolution in folded if convolution.bias is not None]
        self.pool_bias: Tensor | None
        self.register_buffer("pool_bias", biases[-1].clone()[:, None, None] if pooled else None)
        if pooled:  # the bias follows the pooling
            biases[-1] = torch.zeros_like(biases[-1])
        merged.bias = nn.Parameter(torch.cat(biases))
        self.merged = merged

    def forward(self, x: Tensor) -> list[Tensor]:
        """The branches, rectified; the pooled one is the last."""
        branches = list(self.merged(x).split(self.widths, dim=1))
        if self.pool_bias is not None:
            # TensorFlow's average leaves out what lies beyond the edge.
            branches[-1] = F.avg_pool2d(branches[-1], 3, 1, 1, count_include_pad=False) + self.pool_bias
        return [branch.relu() for branch in branches]


def _chain(block: nn.Module, names: list[str]) -> nn.ModuleList:
    return nn.ModuleList(_folded(block.get_submodule(name)) for name in names)


def _through(chain: nn.ModuleList, x: Tensor) -> Tensor:
    for convolution in chain:
        x = F.relu_(convolution(x))
    return x


class _BlockA(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.first = _Branches(block, ["branch1x1", "branch5x5_1", "branch3x3dbl_1", "branch_pool"], pooled=True)
        self.five = _chain(block, ["branch5x5_2"])
        self.three = _chain(block, ["branch3x3dbl_2", "branch3x3dbl_3"])

    def forward(self, x: Tensor) -> Tensor:
        one, five, three, pooled = self.first(x)
        return torch.cat([one, _through(self.five, five), _through(self.three, three), pooled], 1)


class _BlockB(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.shorter = _chain(block, ["branch3x3"])
        self.longer = _chain(block, ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([_through(self.shorter, x), _through(self.longer, x), F.max_pool2d(x, 3, 2)], 1)


class _BlockC(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.first = _Branches(block, ["branch1x1", "branch7x7_1", "branch7x7dbl_1", "branch_pool"], pooled=True)
        self.shorter = _chain(block, ["branch7x7_2", "branch7x7_3"])
        self.longer = _chain(block, [f"branch7x7dbl_{i}" for i in (2, 3, 4, 5)])

    def forward(self, x: Tensor) -> Tensor:
        one, single, double, pooled = self.first(x)
        return torch.cat([one, _through(self.shorter, single), _through(self.longer, double), pooled], 1)


class _BlockD(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.first = _Branches(block, ["branch3x3_1", "branch7x7x3_1"], pooled=False)
        self.three = _chain(block, ["branch3x3_2"])
        self.seven = _chain(block, [f"branch7x7x3_{i}" for i in (2, 3, 4)])

    def forward(self, x: Tensor) -> Tensor:
        three, seven = self.first(x)
        return torch.cat([_through(self.three, three), _through(self.seven, seven), F.max_pool2d(x, 3, 2)], 1)


class _BlockE(nn.Module):
    """average: whether the pooled branch takes the average, as the first of the two does, or the maximum."""

    def __init__(self, block: nn.Module, average: bool) -> None:
        super().__init__()
        names = ["branch1x1", "branch3x3_1", "branch3x3dbl_1"]
        self.first = _Branches(block, [*names, "branch_pool"] if average else names, pooled=average)
        self.pool = None if average else _folded(block.get_submodule("branch_pool"))
        self.shorter, self.longer = (
            nn.ModuleList(_folded(block.get_submodule(f"{name}{letter}")) for letter in "ab")
            for name in ("branch3x3_2", "branch3x3dbl_3")
        )
        self.before_longer = _folded(block.get_submodule("branch3x3dbl_2"))

    def forward(self, x: Tensor) -> Tensor:
        one, single, double, *pooled = self.first(x)
        double = _apply(self.before_longer, double)
        if self.pool is not None:
            pooled = [_apply(self.pool, F.max_pool2d(x, 3, 1, 1))]
        ends = [_apply(convolution, single) for convolution in self.shorter]
        ends += [_apply(convolution, double) for convolution in self.longer]
        return torch.cat([one, *ends, *pooled], 1)
