"""PSNR is scikit-image's, and an image without error has none."""

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from evaluation.metrics.metric import ALONE, Pictures, Sizes
from evaluation.metrics.psnr import Psnr, psnr


def images(seed: int, count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, 24, 20), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_equals_scikit_image() -> None:
    x, y = images(0), images(1)
    expected = [peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=255) for a, b in zip(x, y, strict=True)]
    assert psnr(x, y).tolist() == pytest.approx(expected, rel=1e-12)


def test_known_error() -> None:
    x = torch.full((1, 3, 4, 4), 100, dtype=torch.uint8)
    assert psnr(x, x + 10).item() == pytest.approx(20 * torch.tensor(25.5).log10().item())
    assert psnr(x + 10, x).item() == psnr(x, x + 10).item()  # uint8 must not wrap around
    assert torch.isinf(psnr(x, x)).all()


def test_the_mean_has_a_deviation_and_an_interval() -> None:
    x, y = images(0, 40), images(1, 40)
    metric = Psnr(Sizes(40, 40), resamples=500)
    for numbers in torch.randperm(40).split(7):
        metric.generated(Pictures(numbers, y[numbers], (), x[numbers]), {})
    metric.reduce(ALONE)
    found, values = metric.compute(ALONE)["PSNR"], psnr(x, y)
    assert (found.value, found.deviation) == pytest.approx((values.mean().item(), values.std(correction=0).item()))
    half = 1.96 * values.std().item() / 40**0.5  # by the central limit theorem
    assert found.low == pytest.approx(found.value - half, abs=half / 5)
    assert found.high == pytest.approx(found.value + half, abs=half / 5)


def test_unusable_input_is_named() -> None:
    with pytest.raises(ValueError, match="must both be"):
        psnr(images(0), images(0)[:1])
    metric = Psnr(Sizes(3, 3), resamples=0)
    with pytest.raises(ValueError, match="PSNR compares images with their originals, and these have none"):
        metric.generated(Pictures(torch.arange(3), images(0)), {})
    with pytest.raises(ValueError, match=r"of images \[0, 1, 2\] is not finite"):
        metric.generated(Pictures(torch.arange(3), images(0), (), images(0)), {})
    metric.generated(Pictures(torch.arange(2), images(0)[:2], (), images(1)[:2]), {})
    metric.reduce(ALONE)
    with pytest.raises(ValueError, match=r"1 of 3 images were not added exactly once \(number 2: 0 times\)"):
        metric.compute(ALONE)
