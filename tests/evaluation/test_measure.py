"""Laws of measuring: shares add up to the whole, and nothing is left out or counted twice."""

import dataclasses
from pathlib import Path

import pytest
import torch

from evaluation.errors import EvaluationError
from evaluation.measure import Measured, measure, see_reference
from evaluation.metrics.frechet_features import FrechetFeatures
from evaluation.metrics.frechet_infinity import FrechetInfinity
from evaluation.metrics.frechet_interval import FrechetInterval
from evaluation.metrics.kernel_distance import KernelDistance
from evaluation.metrics.metric import Metric, Network, Pictures, Ranks, Sizes
from evaluation.metrics.precision_recall import PrecisionRecall
from evaluation.metrics.psnr import Psnr
from evaluation.reference import read_reference, write_reference
from tests.evaluation.networks import Projection, batches, on_ranks, pictures

GENERATED, REAL = pictures(24, 0), pictures(30, 1)


def of_whole(batch: int) -> Measured:
    return measure(batches(GENERATED, batch), batches(REAL, batch), Projection(), 24, splits=3)


def every_metric(network: Network, generated: int, real: int) -> dict[str, Metric]:
    sizes = Sizes(generated, real)
    return {
        "kid": KernelDistance(network, "features", sizes, most=100, subsets=7, subset_size=10),
        "pr": PrecisionRecall(network, "features", sizes, most=100, neighbours=3, resamples=20),
        "frechet": FrechetFeatures("logit distance", network, "logits", sizes),
        "infinity": FrechetInfinity("distance∞", network, "features", sizes, most=100, points=4, smallest=12),
        "interval": FrechetInterval("distance again", network, "features", sizes, most=100, resamples=5),
        "psnr": Psnr(sizes, resamples=20),
    }


def test_batch_size_changes_nothing() -> None:
    one, other = of_whole(24), of_whole(5)
    assert one.frechet == pytest.approx(other.frechet, rel=1e-6)
    assert (one.score, one.score_std) == pytest.approx((other.score, other.score_std), rel=1e-6)
    assert (one.generated_images, one.reference_images) == (24, 30)


@pytest.mark.parametrize("world", [1, 2, 3, 32])
def test_ranks_together_find_what_one_finds_alone(world: int) -> None:
    def work(ranks: Ranks) -> Measured:
        network = Projection()
        generated = batches(GENERATED, 3, ranks.rank, ranks.world, REAL[:24])
        real = batches(REAL, 7, ranks.rank, ranks.world)
        return measure(generated, real, network, 24, 3, every_metric(network, 24, 30), ranks)

    network = Projection()
    generated = batches(GENERATED, 24, originals=REAL[:24])
    alone = measure(generated, batches(REAL, 30), network, 24, 3, every_metric(network, 24, 30))
    assert list(alone.others) == [
        "KID", "Precision", "Recall", "logit distance", "distance∞", "distance again", "PSNR",
    ]  # fmt: skip
    for found in on_ranks(world, work):
        assert found.frechet == pytest.approx(alone.frechet, rel=1e-6)
        assert found.score == pytest.approx(alone.score, rel=1e-6)
        assert (found.generated_images, found.reference_images) == (24, 30)
        for name, value in alone.others.items():
            for part, expected in dataclasses.asdict(value).items():
                got = getattr(found.others[name], part)
                assert got == expected if expected is None else got == pytest.approx(expected, rel=1e-6), (name, part)


def test_the_reference_can_be_kept_and_comes_back_on_all_ranks(tmp_path: Path) -> None:
    network = Projection()
    kept = see_reference(batches(REAL, 7), network, every_metric(network, 24, 30))
    path, card = tmp_path / "kept.safetensors", {"metrics": {name: {} for name in kept.metrics}, "image_size": 4}
    write_reference(path, kept, card)

    def work(ranks: Ranks) -> Measured:
        generated = batches(GENERATED, 5, ranks.rank, ranks.world, REAL[:24])
        metrics = every_metric(network, 24, 30)
        return measure(generated, read_reference(path, card), network, 24, 3, metrics, ranks)

    generated = batches(GENERATED, 5, originals=REAL[:24])
    direct = measure(generated, batches(REAL, 7), network, 24, 3, every_metric(network, 24, 30))
    for found in on_ranks(2, work):
        assert found.frechet == pytest.approx(direct.frechet, rel=1e-6)
        for name, value in direct.others.items():
            assert found.others[name].value == pytest.approx(value.value, rel=1e-6)
    with pytest.raises(EvaluationError, match=r"its image_size is 4 and the protocol's 8"):
        read_reference(path, {**card, "image_size": 8})
    with pytest.raises(ValueError, match="nothing for the metric 'pr', or of another number of images"):
        other = {"pr": PrecisionRecall(network, "features", Sizes(24, 29), 100, 3, 0)}
        measure(generated, read_reference(path, card), network, 24, 3, other)
    (tmp_path / "no").write_bytes(b"no reference")
    with pytest.raises(EvaluationError, match="holds no reference"):
        read_reference(tmp_path / "no", card)


def test_without_a_reference_images_are_compared_with_their_originals() -> None:
    found = measure(batches(GENERATED, 5, originals=REAL[:24]), None, Projection(), 24, 3)
    assert found.frechet == pytest.approx(
        measure(batches(GENERATED, 5), batches(REAL[:24], 5), Projection(), 24, 3).frechet
    )
    with pytest.raises(ValueError, match="there is no reference"):
        measure(batches(GENERATED, 5), None, Projection(), 24, 3)


def test_the_same_pictures_have_no_distance() -> None:
    found = measure(batches(REAL, 30), batches(REAL, 30), Projection(), 30, 3)
    assert found.frechet == pytest.approx(0, abs=1e-9)


def test_missing_and_doubled_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="23 of 24"):
        measure(batches(GENERATED[:23], 23), batches(REAL, 30), Projection(), 24, 3)
    with pytest.raises(ValueError, match="25 of 24"):
        doubled = [*batches(GENERATED, 24), *batches(GENERATED[:1], 1)]
        measure(doubled, batches(REAL, 30), Projection(), 24, 3)


def test_mismatched_and_missing_images_are_named() -> None:
    numbers = torch.arange(2)
    with pytest.raises(ValueError, match=r"images are \(2, 3, 4, 4\) and their originals \(2, 3, 8, 8\)"):
        Pictures(numbers, pictures(2, 0), (), pictures(2, 0, 8))
    with pytest.raises(ValueError, match=r"uint8 \[B, 3, H, W\]"):
        Pictures(numbers, torch.rand(2, 3, 4, 4))
    with pytest.raises(ValueError, match="2 images have 2 numbers and 1 captions"):
        Pictures(numbers, pictures(2, 0), ["one"])
    with pytest.raises(ValueError, match="the reference has 1 images; at least 2"):
        see_reference(batches(REAL[:1], 1), Projection())
    with pytest.raises(ValueError, match="0 samples; at least 2"):
        measure(batches(GENERATED, 24), [], Projection(), 24, 3)
