"""Laws of PSNR and SSIM."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from evaluation.metrics.reconstruction import psnr, ssim


def pictures(seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (2, 3, 24, 20), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_equal_pictures_are_perfect() -> None:
    x = pictures()
    assert torch.isinf(psnr(x, x)).all()
    torch.testing.assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64))


def test_psnr_of_a_known_error() -> None:
    x = torch.full((1, 3, 4, 4), 100, dtype=torch.uint8)
    assert psnr(x, x + 10).item() == pytest.approx(20 * np.log10(25.5))
    assert psnr(x + 10, x).item() == pytest.approx(20 * np.log10(25.5))  # uint8 must not wrap around


def test_ssim_equals_its_definition() -> None:
    x, y = pictures(0).double().numpy(), (0.7 * pictures(0).double() + 0.3 * pictures(1).double()).numpy()

    def blur(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, 1.5, truncate=5 / 1.5)[5:-5, 5:-5]

    expected = []
    for a, b in zip(x.reshape(-1, 24, 20), y.reshape(-1, 24, 20), strict=True):
        mean_a, mean_b = blur(a), blur(b)
        cov = blur(a * b) - mean_a * mean_b
        var = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
        c_1, c_2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        ratio = (2 * mean_a * mean_b + c_1) * (2 * cov + c_2) / ((mean_a**2 + mean_b**2 + c_1) * (var + c_2))
        expected.append(ratio.mean())
    found = ssim(torch.from_numpy(x), torch.from_numpy(y))
    np.testing.assert_allclose(found.numpy(), np.reshape(expected, (2, 3)).mean(1), rtol=1e-9)


def test_more_noise_is_worse() -> None:
    x = pictures().double()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for measure in (psnr, ssim):
        little, much = measure(x, x + 5 * noise), measure(x, x + 50 * noise)
        assert bool((little > much).all())


def test_unusable_input_is_named() -> None:
    with pytest.raises(ValueError, match="must both be"):
        psnr(pictures(), pictures()[:1])
    with pytest.raises(ValueError, match="smaller than the 11-pixel window"):
        ssim(pictures()[..., :10], pictures()[..., :10])
