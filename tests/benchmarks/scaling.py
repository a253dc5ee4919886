"""Weak and strong scaling of training steps on one machine's cores, beside what the model of communication says.

    python -m tests.benchmarks.scaling

One rank and two, one thread each, of the demo's UNet, wider, under ZeRO 1 to 3 in fp32 over gloo; more ranks only where
there are cores for them, as ranks that share a core scale by nothing. Weak: as many images a rank; strong: as many in
all. Rounds alternate, of each the median counts. Said is what a step takes where ranks compute as fast as one alone and
send the bytes of `training.planning.communication` at the rate that an all-reduce of 64 MiB was measured to have, with
nothing hidden: what is lost beyond it goes to what cores share, memory above all. Takes some minutes.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

from tests.benchmarks.demo import show
from tests.benchmarks.plan import settings
from tests.training.ranks import RankGroup
from tests.training.runs import composed
from training.distributed import Distributed

CHANNELS = 96
IMAGES = 8
"""Of a rank in weak scaling, of all ranks in strong scaling."""
STAGES = (1, 2, 3)
WARM_UP_STEPS, STEPS, ROUNDS = 1, 3, 3
PROBE_ELEMENTS, PROBES = 1 << 24, 3


def main() -> None:
    """Prints a table for each ZeRO stage."""
    cores = len(os.sched_getaffinity(0))
    worlds = [world for world in (1, 2, 4, 8) if world <= cores]
    groups = {world: RankGroup(world) for world in worlds}
    left_out = [str(world) for world in (2, 4) if world not in worlds]
    if left_out:
        print(f"{cores} cores: {' and '.join(left_out)} ranks aren't measured, as they would share cores")
    try:
        rates = {world: group.run(all_reduce_rate) for world, group in groups.items()}
        for stage in STAGES:
            for scaling in ("weak", "strong"):
                measured: dict[int, list[dict[str, float]]] = {world: [] for world in worlds}
                for _ in range(ROUNDS):
                    for world, group in groups.items():
                        images = IMAGES if scaling == "weak" else IMAGES // world
                        measured[world].append(group.run(steps, stage, images))
                print(f"\nZeRO {stage}, {scaling} scaling")
                show(figures(measured, rates, stage))
    finally:
        for group in groups.values():
            group.kill()


def figures(
    measured: dict[int, list[dict[str, float]]], rates: dict[int, float], stage: int
) -> list[tuple[str, str, str]]:
    """One line a number of ranks."""
    middle = {
        world: {name: statistics.median(one[name] for one in found) for name in found[0]}
        for world, found in measured.items()
    }
    alone = middle[1]["images"] / middle[1]["seconds"]
    table = []
    for world, found in middle.items():
        speed = world * found["images"] / found["seconds"]
        computing = found["images"] / alone
        said = computing / (computing + sent(stage, world) / rates[world])
        line = f"{speed:.1f} images/s, efficiency {speed / alone / world:.0%}"
        if world > 1:
            line += f" (said {said:.0%}), {found['communication'] / found['seconds']:.0%} in exchanges"
        table.append((f"{world} rank{'s' if world > 1 else ''}, {found['images']:.0f} images each", line, ""))
    return table


def sent(stage: int, world: int) -> float:
    """Bytes that a rank sends in a step, by the model of communication."""
    from hydra.utils import instantiate

    from training.modules import build_modules
    from training.planning.communication import traffic
    from training.planning.memory import Trained

    config = composed(settings(CHANNELS, stage, world))
    trained = Trained.of([parameter.numel() for parameter in build_modules(config)["model"].parameters()])
    return sum(exchange.sent(world) for exchange in traffic(trained, instantiate(config.engine), 1))


def all_reduce_rate(ranks: Distributed) -> float:
    """Bytes a second that a rank sends in an all-reduce, as the model of communication counts them."""
    import torch

    tensor = torch.ones(PROBE_ELEMENTS)
    seconds = []
    for _ in range(PROBES + 1):
        ranks.barrier()
        started = time.perf_counter()
        if ranks.world > 1:
            torch.distributed.all_reduce(tensor)
        seconds.append(time.perf_counter() - started)
    return max(1.0, 2 * tensor.nbytes * (ranks.world - 1) / ranks.world / min(seconds[1:]))


def steps(ranks: Distributed, stage: int, images: int) -> dict[str, float]:
    """Seconds of a step, and of them those in exchanges, on the slowest rank."""
    import torch

    from training.build import build_engine
    from training.modules import build_modules

    batch = [f"batch.micro_size={images}", f"batch.global_size={images * ranks.world}"]
    config = composed([*settings(CHANNELS, stage, ranks.world), *batch, "engine.overlap_communication=false"])
    torch.manual_seed(0)
    engine = build_engine(config, build_modules(config)["model"], ranks)
    size = config.data.image_size // 4
    z_t, t = torch.randn(images, 4, size, size), torch.randint(0, 1000, (images,))
    tokens = torch.randint(0, 1000, (images, 20))
    found: list[dict[str, Any]] = []
    for _ in range(WARM_UP_STEPS + STEPS):
        engine.times.take()
        ranks.barrier()
        started = time.perf_counter()
        engine.backward((engine(z_t, t, {"caption": tokens}) - z_t).square().mean())
        engine.step(1e-4)
        seconds = time.perf_counter() - started
        everyone = ranks.gather_values([seconds, engine.times.take().get("communication", 0.0)])
        found.append({"seconds": max(one[0] for one in everyone), "communication": min(one[1] for one in everyone)})
    last = found[WARM_UP_STEPS:]
    return {"images": float(images)} | {name: statistics.median(one[name] for one in last) for name in last[0]}


if __name__ == "__main__":
    main()
