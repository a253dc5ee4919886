"""Generated images against real ones: one pass over each, whatever share of them this rank holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from evaluation.features import FeatureNetwork
from evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from evaluation.metrics.inception_score import InceptionScore

AllReduce = Callable[[Tensor], Tensor]


def alone(tensor: Tensor) -> Tensor:
    """The sum over all ranks where there is one."""
    return tensor


@dataclass(frozen=True)
class Measured:
    """What a measurement found, with the names under which the numbers may be quoted.

    frechet_name, frechet: distance of generated from real images, lower is better.
    score_name, score, score_std: mean and standard deviation over splits, higher is better.
    generated_images, reference_images: how many images either side had, over all ranks.
    features: the feature network and the sha256 of its weights.
    """

    frechet_name: str
    frechet: float
    score_name: str
    score: float
    score_std: float
    generated_images: int
    reference_images: int
    features: str

    def as_dict(self) -> dict[str, str | float | int]:
        """Plain values for JSON."""
        return asdict(self)


def reference_statistics(
    reference: Iterable[Tensor], features: FeatureNetwork, all_reduce: AllReduce = alone
) -> FeatureStatistics:
    """Statistics of real images, to be kept when several sets are measured against the same ones.

    Args:
        reference: this rank's batches, uint8 [B, 3, H, W].
        features: the network that sees them.
        all_reduce: tensor -> its sum over ranks.
    """
    statistics = FeatureStatistics(features.width, features.device)
    for images in reference:
        statistics.update(features(images)[0])
    statistics.reduce(all_reduce)
    return statistics


@torch.no_grad()
def measure(
    generated: Iterable[tuple[Tensor, Tensor]],
    reference: FeatureStatistics | Iterable[Tensor],
    features: FeatureNetwork,
    count: int,
    splits: int = 10,
    all_reduce: AllReduce = alone,
) -> Measured:
    """Fréchet distance and (Inception) score of generated images; the result is the same on every rank.

    Args:
        generated: this rank's batches of numbers int64 [B] in [0, count) and images uint8 [B, 3, H, W].
            Each number belongs to exactly one rank.
        reference: this rank's real images, uint8 [B, 3, H, W] batches, or statistics of all of them.
        features: the network that sees both.
        count: number of generated images over all ranks.
        splits: parts of the score.
        all_reduce: tensor -> its sum over ranks.

    Raises ValueError when an image is missing or twice there, with fewer images than splits, and when
    either side has fewer than two images.
    """
    score = InceptionScore(count, features.classes, splits, features.device)
    if not isinstance(reference, FeatureStatistics):
        reference = reference_statistics(reference, features, all_reduce)
    statistics = FeatureStatistics(features.width, features.device)
    for numbers, images in generated:
        feature, logits = features(images)
        statistics.update(feature)
        score.update(logits, numbers)
    statistics.reduce(all_reduce)
    score.reduce(all_reduce)
    mean, std = score.compute()
    return Measured(
        frechet_name=features.names.frechet,
        frechet=frechet_distance(statistics, reference),
        score_name=features.names.score,
        score=mean,
        score_std=std,
        generated_images=int(statistics.count),
        reference_images=int(reference.count),
        features=features.description,
    )
