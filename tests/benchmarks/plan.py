"""What `ldm plan` predicts beside what ranks on CPUs measure: memory by ZeRO stage, and bytes exchanged in a step.

    python -m tests.benchmarks.plan

Memory is a rank's largest resident set in a step, less what it was before the model was built and after a small one
had trained once, so that libraries, their kernels and threads don't count. Exchanged are the tensors handed to
collectives. Three sizes on two ranks, and the smallest on four. Takes some minutes and 4 GiB.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tests.resident import resident
from tests.training.ranks import RankGroup
from tests.training.runs import composed
from training.distributed import Distributed

MICRO_BATCH = 4
SIZES = {2: (128, 176, 224), 4: (128,)}  # channels of the UNet, by ranks
STAGES = (1, 2, 3)
REQUIRED = 0.10
# Memory that a tensor no longer needs goes back to the system at once, as in a GPU's count of what is allocated.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
# Which tensors of a collective are whole: what goes in, or what comes out.
WHOLE_ARGUMENT = {"allreduce_": 0, "_allgather_base_": 0, "allgather_": 0, "_reduce_scatter_base_": 1}
# With gloo the engine gathers updated weights by a broadcast of each rank's part.
NAMES = {"allreduce_": "all_reduce", "_reduce_scatter_base_": "reduce_scatter", "broadcast_": "all_gather"}


def settings(channels: int, stage: int, world: int) -> list[str]:
    """The demo's model, wider, with the engine's settings of the paper's models but in fp32."""
    return [
        "experiment=demo",
        "data.image_size=64",
        "first_stage.autoencoder.patch_size=2",
        f"model.unet.channels={channels}",
        "model.conditioners.caption.vocabulary_size=1000",
        f"engine=zero{stage}",
        "engine.bucket_elements=2000000",  # filled by these models, as memory that nobody wrote to isn't resident
        "engine.overlap_communication=true",
        "engine.contiguous_gradients=true",
        f"batch.micro_size={MICRO_BATCH}",
        f"batch.global_size={world * MICRO_BATCH}",
    ]


def exchanged_bytes(function: Any, arguments: Sequence[Any]) -> tuple[str, int] | None:
    """Kind of a collective and the bytes of its whole tensors; None for other operations."""
    name = function._schema.name.removeprefix("c10d::")
    if function.namespace != "c10d" or name in ("barrier", "monitored_barrier_"):
        return None
    tensors = list(flat(arguments[WHOLE_ARGUMENT.get(name, 0)]))
    return NAMES.get(name, "all_gather" if "gather" in name else name), sum(t.nbytes for t in tensors)


def flat(value: Any) -> Iterator[Any]:
    """Tensors in lists of lists."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from flat(item)
    else:
        yield value


@contextlib.contextmanager
def exchanging() -> Iterator[Counter[str]]:
    """Bytes by collective of what is exchanged within it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    exchanged: Counter[str] = Counter()

    class Listening(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            if (found := exchanged_bytes(function, args)) is not None:
                exchanged[found[0]] += found[1]
            return function(*args, **(kwargs or {}))

    with Listening():
        yield exchanged


def measure(ranks: Distributed, overrides: list[str]) -> dict[str, Any]:
    """Peak of a step on the rank where it is highest, and the bytes by collective of a step."""
    import torch

    from training.build import build_engine
    from training.modules import build_modules

    config = composed(overrides)
    size = config.data.image_size // 4
    gc.collect()
    before = resident("VmRSS")
    engine = build_engine(config, build_modules(config)["model"], ranks)

    def step() -> None:
        z_t = torch.randn(MICRO_BATCH, 4, size, size)
        t = torch.randint(0, 1000, (MICRO_BATCH,))
        tokens = torch.randint(0, 1000, (MICRO_BATCH, 20))
        loss = (engine(z_t, t, {"caption": tokens}) - z_t).square().mean()
        engine.backward(loss)
        engine.step(1e-4)

    step()
    step()  # ZeRO 3 gathers ahead once it knows the order
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    step()
    peak = resident("VmHWM") - before
    with exchanging() as exchanged:
        step()
    peaks = [torch.zeros(1, dtype=torch.int64) for _ in range(ranks.world)]
    torch.distributed.all_gather(peaks, torch.tensor([peak]))
    return {"peak": max(int(p) for p in peaks), "exchanged": dict(exchanged)}


def predict(config: DictConfig, world: int) -> tuple[int, dict[str, float], dict[str, float]]:
    """Parameters, parts of the memory at its peak, and bytes by collective."""
    from hydra.utils import instantiate

    from training.planning.communication import traffic
    from training.planning.memory import Trained, peak, phases
    from training.planning.passes import count

    counted = count(config)
    trained = Trained.of(list(counted.sizes["model"].values()))
    engine = instantiate(config.engine)
    found = phases(trained, engine, world, 1, counted.training(MICRO_BATCH), backend="gloo")
    exchanged: Counter[str] = Counter()
    for exchange in traffic(trained, engine, 1):
        exchanged[exchange.collective] += exchange.size
    return trained.elements, vars(peak(found)), dict(exchanged)


def main() -> None:
    """Prints a line for each size and stage; status 1 when memory or traffic are off by more than REQUIRED."""
    os.environ |= ALLOCATOR
    worst = 0.0
    for world, sizes in SIZES.items():
        for channels, stage in itertools.product(sizes, STAGES):
            group = RankGroup(world)
            try:
                group.run(measure, settings(32, stage, world))
                measured = group.run(measure, settings(channels, stage, world))
            finally:
                group.kill()
            elements, parts, exchanged = predict(composed(settings(channels, stage, world)), world)
            total = sum(parts.values())
            off = total / measured["peak"] - 1
            apart = abs(sum(exchanged.values()) / sum(measured["exchanged"].values()) - 1)
            worst = max(worst, abs(off), apart)
            told = ", ".join(f"{name} {value / 2**20:.0f}" for name, value in parts.items() if value)
            print(
                f"{elements / 1e6:5.1f}M parameters, {world} ranks, ZeRO {stage}: predicted {total / 2**20:6.0f} MiB, "
                f"measured {measured['peak'] / 2**20:6.0f} MiB, {off:+.1%} ({told})\n"
                f"    exchanged in a step, MB: predicted {in_megabytes(exchanged)}; counted "
                f"{in_megabytes(measured['exchanged'])}",
                flush=True,
            )
    print(f"largest difference {worst:.1%}, required at most {REQUIRED:.0%}")
    sys.exit(worst > REQUIRED)


def in_megabytes(sizes: Mapping[str, float]) -> str:
    """By collective."""
    return ", ".join(f"{name} {size / 1e6:.1f}" for name, size in sorted(sizes.items()))


if __name__ == "__main__":
    main()
