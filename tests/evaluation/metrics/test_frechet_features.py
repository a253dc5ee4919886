"""Fréchet distances beside the one: on other outputs, for more images than there are, and how sure they are."""

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from evaluation.metrics.frechet_features import FrechetFeatures
from evaluation.metrics.frechet_infinity import FrechetInfinity, statistics
from evaluation.metrics.frechet_interval import FrechetInterval
from evaluation.metrics.metric import ALONE, Pictures, Sizes
from tests.evaluation.networks import Projection


def features(count: int, seed: int, width: int = 8) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_is_the_distance_of_the_named_output() -> None:
    metric = FrechetFeatures("sFID", Projection(), "logits", Sizes(20, 30))
    generated, real = features(20, 0, 5), features(30, 1, 5)
    metric.generated(Pictures(torch.arange(20), torch.zeros(20, 3, 4, 4, dtype=torch.uint8)), {"logits": generated})
    metric.real(torch.arange(30), {"logits": real})
    metric.reduce(ALONE)
    expected = frechet_distance(statistics(generated), statistics(real))
    assert metric.compute(ALONE)["sFID"].value == pytest.approx(expected)


def test_missing_images_are_named() -> None:
    metric = FrechetFeatures("sFID", Projection(), "logits", Sizes(20, 30))
    metric.real(torch.arange(29), {"logits": features(29, 1, 5)})
    with pytest.raises(ValueError, match="sFID: 0 of 20 generated images were added"):
        metric.compute(ALONE)
    with pytest.raises(ValueError, match="has no output 'spatial'; choose one of features, logits"):
        FrechetFeatures("sFID", Projection(), "spatial", Sizes(20, 30))


def test_infinity_takes_away_what_few_images_add() -> None:
    """The distance between sets of one distribution is all bias."""
    real = features(20_000, 0)
    few = features(400, 1)
    plain = frechet_distance(statistics(few), statistics(real))
    metric = FrechetInfinity("FID∞", Projection(), "features", Sizes(400, 20_000), 50_000, points=15, smallest=50)
    assert abs(metric.compare(few, real, ALONE)["FID∞"].value) < plain / 3


def test_infinity_is_a_line_read_off_at_zero() -> None:
    real, generated = features(300, 0), features(200, 1) + 0.3
    metric = FrechetInfinity("FID∞", Projection(), "features", Sizes(200, 300), 1000, points=2, smallest=100)
    generator = torch.Generator().manual_seed(0)
    found = []
    for count in (100, 200):
        part = FeatureStatistics(8)
        part.update(generated[torch.randperm(200, generator=generator)[:count]])
        found.append(frechet_distance(part, statistics(real)))
    slope = (found[0] - found[1]) / (1 / 100 - 1 / 200)
    value = metric.compare(generated, real, ALONE)["FID∞"].value
    assert value == pytest.approx(found[1] - slope / 200, rel=1e-9)


def test_interval_is_as_wide_as_distances_of_new_images_scatter() -> None:
    real = features(4000, 0)
    metric = FrechetInterval("FID", Projection(), "features", Sizes(300, 4000), 5000, resamples=60)
    found = metric.compare(features(300, 1) + 0.2, real, ALONE)["FID"]
    fresh = [frechet_distance(statistics(features(300, seed) + 0.2), statistics(real)) for seed in range(2, 62)]
    assert found.low is not None and found.high is not None
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(fresh), rel=0.4)


def test_too_few_images_or_resamples_are_named() -> None:
    with pytest.raises(ValueError, match="15 points from smallest=5000 to 400 generated images"):
        FrechetInfinity("FID∞", Projection(), "features", Sizes(400, 400), 1000, points=15, smallest=5000)
    with pytest.raises(ValueError, match="resamples=1 have no spread"):
        FrechetInterval("FID", Projection(), "features", Sizes(4, 4), 1000, resamples=1)
