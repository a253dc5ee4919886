"""SSIM is scikit-image's, with the window of the paper that it comes from."""

import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from evaluation.metrics.metric import ALONE, Pictures, Sizes
from evaluation.metrics.ssim import Ssim, ssim


def pictures(seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (2, 3, 24, 20), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_equals_scikit_image() -> None:
    x, y = pictures(0).double(), 0.7 * pictures(0).double() + 0.3 * pictures(1).double()
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = [
        structural_similarity(a.numpy(), b.numpy(), channel_axis=0, **settings) for a, b in zip(x, y, strict=True)
    ]
    assert ssim(x, y).tolist() == pytest.approx(expected, rel=1e-9)


def test_equal_pictures_are_perfect() -> None:
    torch.testing.assert_close(ssim(pictures(), pictures()), torch.ones(2, dtype=torch.float64))


def test_more_noise_is_worse() -> None:
    x = pictures().double()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert bool((ssim(x, x + 5 * noise) > ssim(x, x + 50 * noise)).all())


def test_the_metric_is_the_mean() -> None:
    metric = Ssim(Sizes(2, 2), resamples=0)
    metric.generated(Pictures(torch.arange(2), pictures(1), (), pictures(0)), {})
    metric.reduce(ALONE)
    assert metric.compute(ALONE)["SSIM"].value == pytest.approx(ssim(pictures(0), pictures(1)).mean().item())


def test_unusable_input_is_named() -> None:
    with pytest.raises(ValueError, match="smaller than the 11-pixel window"):
        ssim(pictures()[..., :10], pictures()[..., :10])
