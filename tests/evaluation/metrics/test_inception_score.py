"""Laws of the Inception score from streaming sums."""

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from evaluation.metrics.inception_score import InceptionScore


def logits(count: int, classes: int = 20) -> Tensor:
    return 3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("count", "splits"), [(100, 10), (103, 10), (17, 4), (12, 1)])
def test_equals_torch_fidelity_in_any_order_of_arrival(count: int, splits: int) -> None:
    x = logits(count)
    score = InceptionScore(count, x.shape[1], splits)
    for numbers in torch.randperm(count, generator=torch.Generator().manual_seed(1)).split(7):
        score.update(x[numbers], numbers)
    reference = isc_features_to_metric(x, splits=splits)
    mean, std = score.compute()
    assert mean == pytest.approx(reference[KEY_METRIC_ISC_MEAN], rel=1e-9)
    assert std == pytest.approx(reference[KEY_METRIC_ISC_STD], rel=1e-7, abs=1e-12)


def test_bounds_are_reached() -> None:
    certain = InceptionScore(40, 4, splits=1)
    certain.update(100.0 * torch.eye(4).repeat(10, 1), torch.arange(40))
    assert certain.compute()[0] == pytest.approx(4)  # each class equally often, each surely
    undecided = InceptionScore(40, 4, splits=1)
    undecided.update(torch.zeros(40, 4), torch.arange(40))
    assert undecided.compute()[0] == pytest.approx(1)


def test_shares_of_ranks_add_up() -> None:
    x = logits(30)
    whole, one, two = (InceptionScore(30, 20, 3) for _ in range(3))
    whole.update(x, torch.arange(30))
    one.update(x[0::2], torch.arange(0, 30, 2))
    two.update(x[1::2], torch.arange(1, 30, 2))
    shares = iter(two.state)
    one.reduce(lambda tensor: tensor + next(shares))
    assert one.compute() == pytest.approx(whole.compute(), rel=1e-12)


def test_unusable_input_is_named() -> None:
    with pytest.raises(ValueError, match="3 images cannot be dealt into 10 splits"):
        InceptionScore(3, 20)
    score = InceptionScore(10, 20, 2)
    with pytest.raises(ValueError, match=r"0\.\.9"):
        score.update(logits(2), torch.tensor([3, 10]))
    with pytest.raises(ValueError, match="not finite"):
        score.update(torch.full((1, 20), float("nan")), torch.tensor([0]))
    with pytest.raises(ValueError, match="do not fit"):
        score.update(logits(2), torch.tensor([1]))
    score.update(logits(9), torch.arange(9))
    with pytest.raises(ValueError, match="9 of 10 images"):
        score.compute()
