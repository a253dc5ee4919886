"""KID is torch-fidelity's, subset by subset."""

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from evaluation.metrics.kernel_distance import KernelDistance, discrepancy
from evaluation.metrics.metric import ALONE, Pictures, Sizes
from tests.evaluation.networks import Projection


def features(count: int, seed: int, width: int = 8) -> Tensor:
    """As a network's: rectified, of float32."""
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return (x * torch.linspace(0.5, 1.5, width) + 0.2 * seed).relu()


def metric(generated: int, real: int, subsets: int = 9, size: int = 20, most: int = 1000) -> KernelDistance:
    return KernelDistance(Projection(), "features", Sizes(generated, real), most, subsets, size)


def fed(kid: KernelDistance, x: Tensor, y: Tensor) -> KernelDistance:
    empty = torch.zeros(len(x), 3, 4, 4, dtype=torch.uint8)
    for n in torch.randperm(len(x)).split(13):
        kid.generated(Pictures(n, empty[n]), {"features": x[n]})
    for n in torch.randperm(len(y)).split(17):
        kid.real(n, {"features": y[n]})
    kid.reduce(ALONE)
    return kid


def test_equals_torch_fidelity() -> None:
    x, y = features(50, 0), features(60, 1)
    expected = kid_features_to_metric(x.double(), y.double(), kid_subsets=9, kid_subset_size=20, verbose=False)
    found = fed(metric(50, 60), x, y).compute(ALONE)["KID"]
    assert found.value == pytest.approx(expected[KEY_METRIC_KID_MEAN], rel=1e-9)
    assert found.deviation == pytest.approx(expected[KEY_METRIC_KID_STD], rel=1e-9)


def test_is_zero_on_average_between_sets_of_one_distribution() -> None:
    found = [discrepancy(features(50, 0)[:25], features(50, 0)[25:])]
    generator = torch.Generator().manual_seed(3)
    for _ in range(400):
        found.append(discrepancy(*torch.randn(2, 10, 4, generator=generator)))
    mean, error = torch.tensor(found).mean(), torch.tensor(found).std() / len(found) ** 0.5
    assert abs(mean) < 3 * error  # unbiased: it is below zero as often as above


def test_only_the_first_are_kept() -> None:
    x, y = features(50, 0), features(60, 1)
    few = fed(metric(50, 60, most=30), x, y).compute(ALONE)
    assert few == fed(metric(30, 30), x[:30], y[:30]).compute(ALONE)


def test_unusable_input_is_named() -> None:
    with pytest.raises(ValueError, match="19 generated and 60 real images are fewer than subset_size=20"):
        metric(19, 60)
    with pytest.raises(ValueError, match=r"of images \[1\] is not finite"):
        broken = features(2, 0)
        broken[1, 3] = torch.nan
        metric(50, 60).real(torch.arange(2), {"features": broken})
    with pytest.raises(ValueError, match=r"image numbers must lie in 0\.\.49"):
        metric(50, 60).generated(
            Pictures(torch.tensor([-1]), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)), {"features": features(1, 0)}
        )
