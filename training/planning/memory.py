"""Memory of a rank by part, for each ZeRO stage, as DeepSpeed lays it out (Rajbhandari et al. 2020, "ZeRO").

Everything is in bytes. `elements` are those of the parameters that are trained, `ranks` the processes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from training.engine_settings import ELEMENT_BYTES, EngineSettings
from training.planning.counting import Pass

# DeepSpeed's own, which our engine doesn't set: the elements that plain data parallelism reduces at a time, and for
# ZeRO 3 the elements of a parameter up to which it stays whole, those of whole parameters at a time, and those
# gathered ahead.
ALLREDUCE_ELEMENTS = 500_000_000
PERSISTENT_ELEMENTS = 100_000
LIVE_ELEMENTS = 1_000_000_000
PREFETCH_ELEMENTS = 50_000_000

Backend = Literal["nccl", "gloo"]


@dataclass(frozen=True)
class Parts:
    """What a rank's memory is taken by at one moment.

    weights: those that the module computes with, whole ones gathered by ZeRO 3 included. optimizer: fp32 weights where
    they are separate, and the optimizer's moments. buckets: of communication, and copies on the way. others: frozen
    models, and the one that monitors look at.
    """

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    ema: float = 0.0
    activations: float = 0.0
    buckets: float = 0.0
    others: float = 0.0

    @property
    def total(self) -> float:
        """All parts together."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Trained:
    """The parameters that are trained. persistent: elements of those that ZeRO 3 leaves whole. averages: of each.
    moment_bytes: the optimizer's, for an element; Adam's as a default."""

    elements: int
    persistent: int
    averages: int = 1
    moment_bytes: float = 8

    @classmethod
    def of(cls, sizes: list[int], averages: int = 1, moment_bytes: float = 8) -> Trained:
        """From the elements of each parameter."""
        persistent = sum(size for size in sizes if size <= PERSISTENT_ELEMENTS)
        return cls(sum(sizes), persistent, averages, moment_bytes)


def state(trained: Trained, settings: EngineSettings, ranks: int) -> Parts:
    """What is there between two steps, gradients as they are when a step begins: nothing of it depends on images.

    A parameter takes w bytes as a weight and w as a gradient, 4 in fp32 or 2, 8 for Adam's moments, 4 for each of its
    averages and, with ZeRO, 4 for its fp32 weight. ZeRO shards the last three from stage 1 on, and offload has them
    elsewhere, as it has the shards of weights. The gradient that a rank keeps for the step is its own shard's from
    stage 1 on, too: those of others are dropped once they are reduced.
    """
    width, elements, stage = ELEMENT_BYTES[settings.precision], trained.elements, settings.zero_stage
    if stage == 0:
        moments = trained.moment_bytes * elements
        return Parts(width * elements, width * elements, moments, 4 * trained.averages * elements)
    share = elements / ranks
    whole = elements if stage < 3 else (0 if settings.offload_param else share) + trained.persistent
    here = 0 if settings.offload_optimizer else share
    return Parts(width * whole, width * share, (4 + trained.moment_bytes) * here, 4 * trained.averages * here)


def phases(
    trained: Trained,
    settings: EngineSettings,
    ranks: int,
    accumulation: int,
    training: Pass,
    encoding: Pass | None = None,
    others: float = 0.0,
    backend: Backend = "nccl",
) -> dict[str, Parts]:
    """Memory at the moments of a step that can be its peak, by name.

    training: the pass of a micro-batch; encoding: of the frozen parts before it. backend: gloo, unlike NCCL, copies
    what it gathers and keeps the copy for the forward pass.
    """
    width, stage = ELEMENT_BYTES[settings.precision], settings.zero_stage
    between = state(trained, settings, ranks)
    share = trained.elements / ranks
    own = width * share
    bucket = width * min(settings.bucket_elements, trained.elements)
    kept = _accumulated(trained, settings, ranks, accumulation)
    gathered = 0.0
    standing = bucket if stage == 3 and settings.contiguous_gradients else 0.0  # a buffer that is never given back
    if stage == 3:
        gathered = width * min(trained.elements - trained.persistent, LIVE_ELEMENTS)

    def at(gradients: float, activations: float, buckets: float, weights: float = gathered) -> Parts:
        own_weights, optimizer, ema = between.weights + weights, between.optimizer, between.ema
        return Parts(own_weights, gradients, optimizer, ema, activations, buckets + standing, others)

    found = {}
    if encoding is not None:
        found["encoding"] = at(kept, encoding.activation_bytes, 0.0, weights=0.0)
    waiting = _waiting_buckets(settings, bucket)
    backward = [
        at(_during_backward(trained, settings, ranks, accumulation, m.gradients_done), m.activation_bytes, waiting)
        for m in training.moments
    ]
    found["backward"] = max(backward, key=lambda parts: parts.total)
    if stage == 3 and backend == "gloo":
        ahead = width * min(trained.elements - trained.persistent, PREFETCH_ELEMENTS)
        found["gathering"] = at(kept, training.moments[0].activation_bytes, ahead)
    if stage == 0:
        found["reduction"] = at(between.gradients, 0.0, width * min(trained.elements, ALLREDUCE_ELEMENTS))
    elif stage == 1 and not settings.overlap_communication:
        found["reduction"] = at(width * trained.elements + own, 0.0, waiting)
    if stage > 0 and not settings.offload_optimizer:
        flat = own if width == 4 else own + 4 * share  # made one tensor, then turned into fp32
        found["update"] = at(between.gradients + flat, 0.0, 0.0, weights=0.0)
    return found


def peak(found: dict[str, Parts]) -> Parts:
    """The parts at the moment when they are most."""
    return max(found.values(), key=lambda parts: parts.total)


def _accumulated(trained: Trained, settings: EngineSettings, ranks: int, accumulation: int) -> float:
    """Gradients of earlier micro-batches: ZeRO 1 reduces them at the last one alone, and so keeps them whole."""
    width = ELEMENT_BYTES[settings.precision]
    if settings.zero_stage == 3:
        return width * trained.elements / ranks  # one buffer, always there
    if accumulation == 1:
        return 0.0
    return width * trained.elements / (ranks if settings.zero_stage == 2 else 1)


def _during_backward(trained: Trained, settings: EngineSettings, ranks: int, accumulation: int, done: int) -> float:
    """Gradients of a backward pass when `done` elements have theirs. The rank that owns the last layers is the worst
    off: it has its whole buffer from the beginning."""
    width, stage = ELEMENT_BYTES[settings.precision], settings.zero_stage
    own = width * trained.elements / ranks
    if stage == 3:
        return own
    if stage == 2 or (stage == 1 and settings.overlap_communication and accumulation == 1):
        return own * (1 if accumulation == 1 else 2)
    if stage == 1 and settings.overlap_communication:
        return width * trained.elements + own
    return width * (done if accumulation == 1 else trained.elements)


def _waiting_buckets(settings: EngineSettings, bucket: float) -> float:
    """Buckets that fill during the backward pass, and the copy that is reduced."""
    if settings.zero_stage == 0:
        return 0.0
    if settings.zero_stage == 3:
        return bucket
    buffers = (2 if settings.overlap_communication else 1) if settings.contiguous_gradients else 1
    return bucket * (buffers + 1)
