"""Laws of measuring: shares add up to the whole, and nothing is left out or counted twice."""

import threading

import pytest
import torch
from torch import Tensor

from evaluation.features import MeasureNames
from evaluation.measure import Measured, measure, reference_statistics


class Projection:
    """A cheap feature network: fixed random projections of the pixels."""

    name = "projection"
    description = "random projection"
    names = MeasureNames("distance", "score")
    width, classes = 8, 5
    device = torch.device("cpu")

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.features = torch.randn(3 * 4 * 4, self.width, generator=generator)
        self.logits = torch.randn(3 * 4 * 4, self.classes, generator=generator)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.flatten(1).float() / 255
        return x @ self.features, x @ self.logits


def pictures(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)


GENERATED, REAL = pictures(24, 0), pictures(30, 1)


def of_whole(batch: int) -> Measured:
    numbers = torch.arange(24).split(batch)
    return measure(((n, GENERATED[n]) for n in numbers), REAL.split(batch), Projection(), 24, splits=3)


def test_batch_size_changes_nothing() -> None:
    one, other = of_whole(24), of_whole(5)
    assert one.frechet == pytest.approx(other.frechet, rel=1e-6)
    assert (one.score, one.score_std) == pytest.approx((other.score, other.score_std), rel=1e-6)
    assert (one.generated_images, one.reference_images) == (24, 30)


def test_ranks_together_find_what_one_finds_alone() -> None:
    world = 3
    barrier = threading.Barrier(world, timeout=30)
    shares: list[Tensor] = [torch.empty(0)] * world
    found: dict[int, Measured] = {}

    def work(rank: int) -> None:
        def all_reduce(tensor: Tensor) -> Tensor:
            shares[rank] = tensor.clone()
            barrier.wait()
            total = torch.stack(shares).sum(0)
            barrier.wait()
            return total

        numbers = torch.arange(rank, 24, world)
        generated = [(n, GENERATED[n]) for n in numbers.split(3)]
        found[rank] = measure(generated, [REAL[rank::world]], Projection(), 24, 3, all_reduce)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = of_whole(24)
    for rank in range(world):
        assert found[rank].frechet == pytest.approx(alone.frechet, rel=1e-6)
        assert found[rank].score == pytest.approx(alone.score, rel=1e-6)
        assert (found[rank].generated_images, found[rank].reference_images) == (24, 30)


def test_statistics_of_the_reference_can_be_kept() -> None:
    kept = reference_statistics([REAL], Projection())
    again = measure([(torch.arange(24), GENERATED)], kept, Projection(), 24, splits=3)
    assert again.frechet == pytest.approx(of_whole(24).frechet, rel=1e-6)


def test_the_same_pictures_have_no_distance() -> None:
    assert measure([(torch.arange(30), REAL)], [REAL], Projection(), 30, 3).frechet == pytest.approx(0, abs=1e-9)


def test_missing_and_doubled_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="23 of 24"):
        measure([(torch.arange(23), GENERATED[:23])], [REAL], Projection(), 24, 3)
    with pytest.raises(ValueError, match="25 of 24"):
        doubled = [(torch.arange(24), GENERATED), (torch.tensor([0]), GENERATED[:1])]
        measure(doubled, [REAL], Projection(), 24, 3)
