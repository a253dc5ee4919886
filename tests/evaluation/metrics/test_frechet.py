"""Laws of the Fréchet distance and of the statistics it is computed from."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from evaluation.metrics.frechet import FeatureStatistics, frechet_distance


def features(count: int, width: int, seed: int) -> Tensor:
    """Correlated float32 features with a mean, [count, width]."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    mean = torch.randn(width, generator=generator)
    return torch.randn(count, width, generator=generator) @ mixing + mean


def statistics(x: Tensor) -> FeatureStatistics:
    found = FeatureStatistics(x.shape[1])
    for part in x.split(37):
        found.update(part)
    return found


def test_equals_torch_fidelity() -> None:
    a, b = features(400, 32, 0), features(300, 32, 1)
    reference = fid_statistics_to_metric(
        fid_features_to_statistics(a.double()), fid_features_to_statistics(b.double()), verbose=False
    )[KEY_METRIC_FID]
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(reference, rel=1e-7)


def test_equals_the_definition_with_a_matrix_root() -> None:
    a, b = features(400, 32, 2).double().numpy(), features(300, 32, 3).double().numpy()
    sigma_a, sigma_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(sigma_a @ sigma_b).real
    difference = a.mean(0) - b.mean(0)
    expected = difference @ difference + np.trace(sigma_a + sigma_b - 2 * root)
    found = frechet_distance(statistics(torch.from_numpy(a)), statistics(torch.from_numpy(b)))
    assert found == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("apart", [1.0, 1e-4])
def test_is_accurate_for_deviations_of_very_different_size_and_for_near_distributions(apart: float) -> None:
    deviations = torch.logspace(0, -5, 48, dtype=torch.float64)
    mixing = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(9), dtype=torch.float64)).Q
    a = features(500, 48, 10).double() * deviations @ mixing
    b = a + apart * features(500, 48, 11).double() * deviations @ mixing
    # With each covariance's own root nothing but symmetric matrices with real eigenvalues is needed.
    sigma_a, sigma_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(sigma_a)
    root_a = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    overlap = torch.linalg.svdvals(root_a @ torch.linalg.cholesky(sigma_b)).sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + sigma_a.trace() + sigma_b.trace() - 2 * overlap
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(float(expected), rel=1e-6)


def test_is_exact_with_fewer_samples_than_features() -> None:
    a, b = features(20, 128, 4).double(), features(30, 128, 5).double()
    centred_a = (a - a.mean(0)) / 19**0.5
    centred_b = (b - b.mean(0)) / 29**0.5
    # tr((S_a S_b)^½) is the sum of the singular values of the small matrix of inner products.
    overlap = torch.linalg.svdvals(centred_a @ centred_b.T).sum()
    difference = a.mean(0) - b.mean(0)
    expected = difference @ difference + centred_a.square().sum() + centred_b.square().sum() - 2 * overlap
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(float(expected), rel=1e-9)


def test_known_gaussians() -> None:
    # One feature: (mu_a - mu_b)² + (sigma_a - sigma_b)².
    a = torch.tensor([[-1.0], [1.0]])  # mean 0, variance 2
    b = torch.tensor([[3.0], [5.0], [1.0]])  # mean 3, variance 4
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(9 + (2 - 2**0.5) ** 2, rel=1e-12)


def test_equal_features_are_a_point() -> None:
    """As of pictures of one colour: a covariance without any rank."""
    point, spread = statistics(torch.full((5, 3), 2.0)), statistics(features(40, 3, 12))
    expected = (spread.mean - 2).square().sum() + spread.covariance.trace()
    assert frechet_distance(point, spread) == pytest.approx(float(expected), rel=1e-12)
    assert frechet_distance(point, point) == 0


@pytest.mark.parametrize("count", [10, 500])
def test_is_zero_between_equals_and_symmetric(count: int) -> None:
    a, b = statistics(features(count, 48, 6)), statistics(features(count, 48, 7))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)
    assert frechet_distance(a, b) > 0.1


def test_statistics_of_parts_are_those_of_the_whole() -> None:
    x = features(101, 16, 8)
    whole = statistics(x)
    merged = statistics(x[:40]).merge(statistics(x[40:]))
    reduced = statistics(x[:40])
    shares = iter(statistics(x[40:]).state)
    reduced.reduce(lambda tensor: tensor + next(shares))
    for other in (merged, reduced):
        assert int(other.count) == 101
        torch.testing.assert_close(other.mean, x.double().mean(0))
        torch.testing.assert_close(other.covariance, x.double().T.cov())
        torch.testing.assert_close(other.covariance, whole.covariance)


def test_unusable_input_is_named() -> None:
    one = FeatureStatistics(4)
    one.update(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="1 samples; at least 2"):
        frechet_distance(one, one)
    with pytest.raises(ValueError, match="1 of 2 feature vectors are not finite"):
        one.update(torch.tensor([[0.0, 0, 0, 0], [0, float("nan"), 0, 0]]))
    with pytest.raises(ValueError, match=r"\[B, 4\]"):
        one.update(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="4 and of 5 features"):
        frechet_distance(one, FeatureStatistics(5))
    with pytest.raises(ValueError, match="5 features into 4"):
        one.merge(FeatureStatistics(5))
