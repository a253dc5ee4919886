"""Which micro-batches divide a batch among ranks, and which of them fit into a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from training.engine_settings import ELEMENT_BYTES, STAGES, EngineSettings
from training.planning.memory import Parts, peak, phases, state
from training.planning.passes import Counted

SHOWN = 7


@dataclass(frozen=True)
class Room:
    """A GPU's memory, and what of it tensors can't have: bytes at once, and a share of what they take."""

    memory_bytes: float
    reserved_bytes: float
    fragmentation: float

    def taken(self, parts: Parts) -> float:
        """By these tensors and all else."""
        return parts.total * (1 + self.fragmentation) + self.reserved_bytes

    def holds(self, parts: Parts) -> bool:
        """Whether they fit."""
        return self.taken(parts) <= self.memory_bytes


@dataclass(frozen=True)
class Choice:
    """A ZeRO stage and a micro-batch, and the parts of a rank's memory at its peak, whose moment has a name."""

    stage: int
    micro_batch: int
    accumulation: int
    moment: str
    parts: Parts


def nearest_batch(global_batch: int, ranks: int) -> int:
    """The multiple of `ranks` that is nearest to a batch; the batch itself where it is one."""
    return max(1, round(global_batch / ranks)) * ranks


def micro_batches(global_batch: int, ranks: int) -> list[int]:
    """Those that divide a rank's share of a batch, which the ranks divide, smallest first."""
    share = global_batch // ranks
    return [size for size in range(1, share + 1) if share % size == 0]


def stages_of(precision: str) -> list[int]:
    """Those that the engine offers: without ZeRO there are no fp32 weights beside others."""
    return [stage for stage in STAGES if stage or precision == "fp32"]


def choice_of(counted: Counted, settings: EngineSettings, ranks: int, micro_batch: int, accumulation: int) -> Choice:
    """The peak memory of one way to run."""
    trained = {name: counted.trained(name) for name in counted.sizes}
    # The discriminator's engine rests while the autoencoder's is at its peak.
    width = ELEMENT_BYTES["fp32"]
    others = width * counted.frozen + sum(
        state(t, settings, ranks).total for name, t in trained.items() if name != "model"
    )
    found = phases(
        trained["model"],
        settings,
        ranks,
        accumulation,
        counted.training(micro_batch),
        counted.encoding(micro_batch),
        others,
    )
    moment = max(found, key=lambda name: found[name].total)
    return Choice(settings.zero_stage, micro_batch, accumulation, moment, peak(found))


def shown(sizes: list[int]) -> list[int]:
    """Some of many, the ends among them."""
    if len(sizes) <= SHOWN:
        return sizes
    return [sizes[round(i * (len(sizes) - 1) / (SHOWN - 1))] for i in range(SHOWN)]
