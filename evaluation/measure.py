"""Generated images against real ones: one pass over each, whatever share of them this rank holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from evaluation.features import FeatureNetwork
from evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from evaluation.metrics.inception_score import InceptionScore
from evaluation.metrics.metric import ALONE, Metric, Network, Pictures, Ranks, Value


@dataclass(frozen=True)
class Measured:
    """What a measurement found, with the names under which the numbers may be quoted.

    frechet_name, frechet: distance of generated from real images, lower is better.
    score_name, score, score_std: mean and standard deviation over splits, higher is better.
    generated_images, reference_images: how many images either side had, over all ranks.
    features: the feature network and the sha256 of its weights.
    others: what the protocol's other metrics found, by the names they may be quoted under.
    networks: the other networks that those needed, with the sha256 of their weights.
    """

    frechet_name: str
    frechet: float
    score_name: str
    score: float
    score_std: float
    generated_images: int
    reference_images: int
    features: str
    others: Mapping[str, Value] = field(default_factory=dict)
    networks: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "networks": list(self.networks)}


class Reference:
    """All that measures need to know of the real images, over all ranks.

    statistics: of the feature network's features. metrics: what each other metric has gathered of them, by its name in
    the protocol.
    """

    def __init__(self, statistics: FeatureStatistics, metrics: Mapping[str, tuple[Tensor, ...]]) -> None:
        if statistics.count < 2:
            raise ValueError(f"the reference has {int(statistics.count)} images; at least 2 are needed")
        self.statistics, self.metrics = statistics, metrics


def see_reference(
    batches: Iterable[Pictures],
    features: FeatureNetwork,
    metrics: Mapping[str, Metric] | None = None,
    ranks: Ranks = ALONE,
) -> Reference:
    """What is to be known of real images, to be kept when several sets are measured against the same ones.

    Args:
        batches: this rank's.
        features: the network that sees them.
        metrics: made for these images; they are used up.
        ranks: that share the images.
    """
    metrics = metrics or {}
    statistics = FeatureStatistics(features.width, features.device)
    for pictures in batches:
        _see_real(pictures, features, statistics, metrics)
    statistics.reduce(ranks.all_reduce_sum)
    for metric in metrics.values():
        metric.reduce(ranks)
    return Reference(statistics, {name: metric.reference for name, metric in metrics.items()})


@torch.no_grad()
def measure(
    generated: Iterable[Pictures],
    reference: Reference | Iterable[Pictures] | None,
    features: FeatureNetwork,
    count: int,
    splits: int = 10,
    metrics: Mapping[str, Metric] | None = None,
    ranks: Ranks = ALONE,
) -> Measured:
    """Fréchet distance, (Inception) score and what else is asked for; the result is the same on every rank.

    Args:
        generated: this rank's batches, with numbers in [0, count). Each number belongs to exactly one rank.
        reference: this rank's real images, or what is known of all of them; None: the generated images' originals.
        features: the network that sees both.
        count: number of generated images over all ranks.
        splits: parts of the score.
        metrics: further ones, by name; made for these numbers of images, and used up.
        ranks: that share the images.

    Raises ValueError when an image is missing or twice there, with fewer than two images a split, when
    either side has fewer than two images, and when features are not finite.
    """
    metrics = metrics or {}
    score = InceptionScore(count, features.classes, splits, features.device)
    statistics, real = (FeatureStatistics(features.width, features.device) for _ in range(2))
    if isinstance(reference, Reference):
        _recall(reference, real, metrics, ranks)
    elif reference is not None:
        for pictures in reference:
            _see_real(pictures, features, real, metrics)
    for pictures in generated:
        found = _Outputs(pictures, features)
        statistics.update(found.of(features)["features"])
        score.update(found.of(features)["logits"], pictures.numbers)
        for metric in metrics.values():
            metric.generated(pictures, found.of(metric.network))
        if reference is None:
            if pictures.originals is None:
                raise ValueError("there is no reference: give real images, or the originals of the generated ones")
            originals = Pictures(pictures.numbers, pictures.originals)
            _see_real(originals, features, real, metrics)
    statistics.reduce(ranks.all_reduce_sum)
    real.reduce(ranks.all_reduce_sum)
    score.reduce(ranks.all_reduce_sum)
    mean, std = score.compute()
    others: dict[str, Value] = {}
    for metric in metrics.values():
        metric.reduce(ranks)
        others |= metric.compute(ranks)
    networks = {metric.network.description for metric in metrics.values() if metric.network is not None}
    return Measured(
        frechet_name=features.names.frechet,
        frechet=frechet_distance(statistics, real),
        score_name=features.names.score,
        score=mean,
        score_std=std,
        generated_images=int(statistics.count),
        reference_images=int(real.count),
        features=features.description,
        others=others,
        networks=sorted(networks - {features.description}),
    )


class _Outputs:
    """What networks make of one batch, each asked once."""

    def __init__(self, pictures: Pictures, features: FeatureNetwork) -> None:
        self._pictures = pictures
        self._found: dict[int, Mapping[str, Tensor]] = {id(features): features.outputs(pictures)}

    def of(self, network: Network | None) -> Mapping[str, Tensor]:
        if network is None:
            return {}
        if id(network) not in self._found:
            self._found[id(network)] = network.outputs(self._pictures)
        return self._found[id(network)]


def _see_real(
    pictures: Pictures,
    features: FeatureNetwork,
    statistics: FeatureStatistics,
    metrics: Mapping[str, Metric],
) -> None:
    # Their captions are no matter: what is compared of real images are their features.
    found = _Outputs(Pictures(pictures.numbers, pictures.images), features)
    statistics.update(found.of(features)["features"])
    for metric in metrics.values():
        metric.real(pictures.numbers, found.of(metric.network))


def _recall(reference: Reference, statistics: FeatureStatistics, metrics: Mapping[str, Metric], ranks: Ranks) -> None:
    """Puts what is known of all real images where it would have been gathered; on one rank, as ranks are summed up."""
    for name, metric in metrics.items():
        kept = reference.metrics.get(name, ())
        if [tensor.shape for tensor in kept] != [tensor.shape for tensor in metric.reference]:
            raise ValueError(
                f"the kept reference has nothing for the metric {name!r}, or of another number of images; compute it "
                "anew with this protocol"
            )
        if ranks.rank == 0:
            for tensor, value in zip(metric.reference, kept, strict=True):
                tensor.copy_(value)
    if ranks.rank == 0:
        for tensor, value in zip(statistics.state, reference.statistics.state, strict=True):
            tensor.copy_(value)
