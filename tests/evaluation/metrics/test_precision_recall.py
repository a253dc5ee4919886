"""Precision and recall are torch-fidelity's, whatever blocks and ranks they are computed in."""

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from evaluation.metrics import precision_recall
from evaluation.metrics.metric import ALONE, Ranks, Sizes
from evaluation.metrics.precision_recall import PrecisionRecall, inside, radii
from tests.evaluation.networks import Projection, on_ranks


def features(count: int, seed: int, width: int = 8, spread: float = 1.0, mean: float = 2.0) -> Tensor:
    return spread * torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + mean


def compared(generated: Tensor, real: Tensor, ranks: Ranks = ALONE, neighbours: int = 3) -> tuple[float, float]:
    sizes = Sizes(len(generated), len(real))
    metric = PrecisionRecall(Projection(), "features", sizes, 1000, neighbours, resamples=0)
    found = metric.compare(generated, real, ranks)
    return found["Precision"].value, found["Recall"].value


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_recall, "ROWS", 7)
    monkeypatch.setattr(precision_recall, "COLUMNS", 11)


@pytest.mark.parametrize(("neighbours", "spread"), [(1, 1.0), (3, 0.6), (3, 1.0), (5, 1.5)])
def test_equals_torch_fidelity(small_blocks: None, neighbours: int, spread: float) -> None:
    generated, real = features(60, 0, spread=spread), features(75, 1)
    expected = prc_features_to_metric(generated, real, prc_neighborhood=neighbours, verbose=False)
    found = compared(generated, real, neighbours=neighbours)
    assert found == (pytest.approx(expected[KEY_METRIC_PRECISION]), pytest.approx(expected[KEY_METRIC_RECALL]))
    assert min(found) > 0 and min(found) < 1


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_blocks(small_blocks: None, world: int) -> None:
    generated, real = features(60, 0, spread=0.7), features(75, 1)
    alone = compared(generated, real)
    assert on_ranks(world, lambda ranks: compared(generated, real, ranks)) == [alone] * world


def test_copies_of_one_image_are_precise_and_recall_little() -> None:
    real = features(200, 0)
    assert compared(real[:1] + 1e-3 * features(5, 1, mean=0.0), real) == (1, 1 / 200)
    assert compared(features(50, 1, mean=50.0), real) == (0, 0)


def test_distances_survive_a_far_origin() -> None:
    """Features that differ little beside their size, as a network's may: squares in float32 would cancel."""
    x = features(40, 0, width=64, spread=1e-2, mean=30.0)
    exact = torch.cdist(x.double(), x.double()).topk(4, largest=False).values[:, -1].square()
    torch.testing.assert_close(radii(x, 3, ALONE).double(), exact, rtol=1e-3, atol=0)
    assert inside(x, x, radii(x, 3, ALONE), ALONE).all()


def test_intervals_hold_the_value() -> None:
    generated, real = features(60, 0, spread=0.7), features(75, 1)
    metric = PrecisionRecall(Projection(), "features", Sizes(60, 75), 1000, 3, resamples=200)
    for value in metric.compare(generated, real, ALONE).values():
        assert value.low is not None and value.high is not None
        assert value.low < value.value < value.high


def test_too_few_images_are_named() -> None:
    with pytest.raises(ValueError, match="neighbours=3: 3 generated and 75 real images must be more than that"):
        compared(features(3, 0), features(75, 1))
