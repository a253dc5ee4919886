"""What ranks tell one another in a step, and how long a step takes with it: a model, whose assumptions have names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from training.engine_settings import ELEMENT_BYTES, EngineSettings
from training.planning.cluster import Cluster
from training.planning.memory import ALLREDUCE_ELEMENTS, LIVE_ELEMENTS, Trained

Collective = Literal["all_reduce", "all_gather", "reduce_scatter"]
When = Literal["forward and backward", "backward", "update"]

# Assumptions of the model of time. Links reach this share of their data sheet's rate; a collective costs this much
# before its first byte, and this much more for each doubling of ranks; and of the pass that a collective runs beside,
# this share can hide it.
LINK_EFFICIENCY = 0.75
START_SECONDS = 30e-6
HOP_SECONDS = 10e-6
HIDING_SHARE = 0.8
BACKWARD_SHARE = 2 / 3  # of a training pass's FLOPs


@dataclass(frozen=True)
class Traffic:
    """One kind of exchange in a step: the bytes of the whole tensors, all calls together, and the number of calls."""

    collective: Collective
    size: float
    calls: int
    beside: When
    """What it can run beside, where communication is overlapped."""

    def sent(self, ranks: int) -> float:
        """Bytes that a rank sends, by the ring that needs the fewest: 2 (n - 1)/n of an all-reduced tensor, (n - 1)/n
        of a gathered or scattered one."""
        return (2 if self.collective == "all_reduce" else 1) * self.size * (ranks - 1) / ranks


def traffic(trained: Trained, settings: EngineSettings, accumulation: int) -> list[Traffic]:
    """The exchanges of one step by ZeRO stage, as DeepSpeed does them; those of a few bytes are left out.

    Stage 0 reduces after the last backward pass. Stages 1 and 2 all-reduce their buckets, although a rank needs its
    share alone, and gather the weights after the update: 2 reduces for every micro-batch, 1 for the last. Stage 3
    gathers weights for a pass and keeps up to LIVE_ELEMENTS of them until the backward pass is through; small
    parameters are gathered after the update.
    """
    width, elements, stage = ELEMENT_BYTES[settings.precision], trained.elements, settings.zero_stage
    buckets = math.ceil(elements / settings.bucket_elements)
    reduced = Traffic("all_reduce", width * elements, buckets, "backward")
    gathered = Traffic("all_gather", width * elements, buckets, "update")
    if stage == 0:
        return [Traffic("all_reduce", width * elements, math.ceil(elements / ALLREDUCE_ELEMENTS), "update")]
    if stage == 1:
        return [reduced, gathered]
    if stage == 2:
        return [_times(reduced, accumulation), gathered]
    sharded = elements - trained.persistent
    twice = max(0, sharded - LIVE_ELEMENTS)
    fetched = Traffic("all_gather", width * (sharded + twice), buckets, "forward and backward")
    scattered = Traffic("reduce_scatter", width * elements, buckets, "backward")
    small = Traffic("all_gather", width * trained.persistent, 1, "update")
    return [_times(fetched, accumulation), _times(scattered, accumulation), small]


def _times(one: Traffic, count: int) -> Traffic:
    return Traffic(one.collective, one.size * count, one.calls * count, one.beside)


@dataclass(frozen=True)
class Step:
    """Seconds of one step: computing, and what of the communication isn't hidden behind it."""

    compute: float
    communication: float
    exposed: float

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.compute + self.exposed


def seconds_of(exchange: Traffic, cluster: Cluster) -> float:
    """How long an exchange takes alone. Within a node the GPUs' own links carry it; between nodes every GPU's share of
    the network does, all of a node's together, as rings go through all of them."""
    ranks, gpu = cluster.ranks, cluster.gpu
    if ranks == 1:
        return 0.0
    rate = gpu.link_bytes_per_second
    if cluster.nodes > 1:
        rate = min(rate, cluster.gpus_per_node * gpu.network_bytes_per_second)
    starts = exchange.calls * (START_SECONDS + HOP_SECONDS * math.log2(ranks))
    return starts + exchange.sent(ranks) / (LINK_EFFICIENCY * rate)


def step_of(
    trained: Trained, settings: EngineSettings, accumulation: int, compute: float, training: float, cluster: Cluster
) -> Step:
    """A step that computes for `compute` seconds, `training` of them in passes of what is trained."""
    total = exposed = 0.0
    last = training / accumulation * BACKWARD_SHARE
    # ZeRO 2 and 3 exchange gradients in every micro-batch, ZeRO 0 and 1 in the last alone.
    backward = last * (accumulation if settings.zero_stage >= 2 else 1)
    room = {"backward": backward, "forward and backward": training - backward, "update": 0.0}
    for exchange in traffic(trained, settings, accumulation):
        seconds = seconds_of(exchange, cluster)
        hidden = HIDING_SHARE * room[exchange.beside] if settings.overlap_communication else 0.0
        total += seconds
        exposed += max(0.0, seconds - hidden)
    return Step(compute, total, exposed)
