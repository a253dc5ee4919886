"""A configuration and a cluster, put together to what the run will need."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from training.engine_settings import EngineSettings
from training.model_checks import check_models
from training.planning.batches import Choice, Room, choice_of, micro_batches, nearest_batch, stages_of
from training.planning.cluster import Cluster
from training.planning.communication import Step, Traffic, step_of, traffic
from training.planning.costs import Checkpointing, Reading, bytes_read_per_sample
from training.planning.passes import Counted, count

SIMULATED = (8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Scaled:
    """A step on so many ranks. global_batch: images a step, over `ranks`; efficiency: images a second and rank beside
    those of one rank alone."""

    ranks: int
    global_batch: int
    micro_batch: int
    step: Step
    efficiency: float

    @property
    def images_per_second(self) -> float:
        """Of all ranks."""
        return self.global_batch / self.step.seconds


@dataclass(frozen=True)
class Plan:
    """What the table tells. `chosen` is None where nothing fits; what follows from it is None or empty then."""

    config: DictConfig
    cluster: Cluster
    counted: Counted
    room: Room
    global_batch: int
    choices: list[Choice]
    chosen: Choice | None
    step: Step | None
    traffic: list[Traffic]
    weak: list[Scaled]
    strong: list[Scaled]
    checkpointing: Checkpointing
    reading: Reading | None

    @property
    def assume(self) -> Any:
        """What is assumed."""
        return self.config.assume


def make_plan(config: DictConfig, cluster: Cluster) -> Plan:
    """Counts the configured task and plans it. Raises ConfigurationError for models that don't fit together."""
    check_models(config)
    settings: EngineSettings = instantiate(config.engine)
    counted = count(config)
    assume = config.assume
    room = Room(cluster.gpu.memory_bytes, assume.reserved_bytes, assume.fragmentation)
    batch = nearest_batch(config.batch.global_size, cluster.ranks)
    sizes = micro_batches(batch, cluster.ranks)
    share = batch // cluster.ranks
    choices = [
        choice_of(counted, replace(settings, zero_stage=stage), cluster.ranks, size, share // size)
        for stage in stages_of(settings.precision)
        for size in sizes
    ]
    fitting = [c for c in choices if c.stage == settings.zero_stage and room.holds(c.parts)]
    chosen = max(fitting, key=lambda c: c.micro_batch, default=None)
    checkpointing = Checkpointing(
        counted.elements,
        counted.kinds,
        cluster.ranks,
        cluster.nodes,
        None if settings.state_in_files else assume.copy_bytes_per_second,
        assume.write_bytes_per_second,
    )
    if chosen is None:
        return Plan(config, cluster, counted, room, batch, choices, None, None, [], [], [], checkpointing, None)
    clock = Clock(config, counted, settings)
    scaled = clock.scaled(cluster, batch, chosen.micro_batch)
    weak, strong = [], []
    for ranks in SIMULATED:
        machines = cluster.of(ranks)
        weak.append(clock.scaled(machines, share * ranks, chosen.micro_batch))
        if batch % ranks == 0 and (fit := _fitting(counted, settings, room, batch, ranks)):
            strong.append(clock.scaled(machines, batch, fit[-1]))
    samples = assume.samples or config.steps * batch
    caches = cluster.nodes if config.data.storage.cache_folder else cluster.ranks * max(1, config.data.workers)
    block = config.data.storage.block_bytes
    reading = Reading(
        bytes_read_per_sample(assume.sample_bytes, block, caches),
        scaled.images_per_second,
        block,
        samples,
        config.data.samples_per_shard,
    )
    return Plan(
        config,
        cluster,
        counted,
        room,
        batch,
        choices,
        chosen,
        scaled.step,
        traffic(clock.trained, settings, chosen.accumulation),
        weak,
        strong,
        checkpointing,
        reading,
    )


def _fitting(counted: Counted, settings: EngineSettings, room: Room, batch: int, ranks: int) -> list[int]:
    """The micro-batches that fit where so many ranks share a batch, smallest first."""
    share = batch // ranks
    sizes = micro_batches(batch, ranks)
    return [size for size in sizes if room.holds(choice_of(counted, settings, ranks, size, share // size).parts)]


class Clock:
    """How long steps take: counted FLOPs at the assumed share of the peak, and the model of communication."""

    def __init__(self, config: DictConfig, counted: Counted, settings: EngineSettings) -> None:
        self.counted = counted
        self.settings = settings
        self.utilisation = config.assume.utilisation
        self.trained = counted.trained(*counted.sizes)

    def seconds(self, cluster: Cluster, micro_batch: int) -> tuple[float, float]:
        """Computing of one micro-batch: everything, and the passes of what is trained alone."""
        gpu = cluster.gpu
        rate = gpu.fp32_flops_per_second if self.settings.precision == "fp32" else gpu.bf16_flops_per_second
        one = self.counted.training(micro_batch)
        training = (one.forward_flops + one.backward_flops) / (self.utilisation * rate)
        encoding = self.counted.encoding(micro_batch)
        frozen = 0.0
        if encoding is not None:  # computed in float32
            frozen = encoding.forward_flops / (self.utilisation * gpu.fp32_flops_per_second)
        return training + frozen, training

    def scaled(self, cluster: Cluster, global_batch: int, micro_batch: int) -> Scaled:
        """A step of a batch that ranks and micro-batch divide."""
        accumulation = global_batch // (cluster.ranks * micro_batch)
        everything, training = (accumulation * s for s in self.seconds(cluster, micro_batch))
        step = step_of(self.trained, self.settings, accumulation, everything, training, cluster)
        return Scaled(cluster.ranks, global_batch, micro_batch, step, step.compute / step.seconds)
