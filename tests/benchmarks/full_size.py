"""The 1.45B text-to-image model, whole, on one process of a small machine: two steps, a checkpoint, and a third step of
another process that went on from it. Prints what was measured beside what is required.

    python -m tests.benchmarks.full_size --folder FOLDER     # on a local disk with 32 GB free; takes half an hour

ZeRO 3 with bf16 weights in memory, and fp32 weights, gradients, moments and the average in files (`offload_optimizer:
nvme`). The pictures are OpenMoji's at 256 x 256 with their captions; the first stage is untrained, as its weights
change nothing of time and memory. What is written is removed in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.demo import show
from tests.benchmarks.plan import ALLOCATOR
from tests.resident import resident

PARAMETERS = 872_300_484 + 542_895_360
MEMORY_GIB = 24
STEPS = 2


def settings(folder: Path) -> list[str]:
    """The experiment, but for its batch, its data and where its state lies."""
    return [
        "experiment=txt2img_1p45b",
        "engine=zero3",
        "engine.offload_optimizer=nvme",
        f"engine.offload_folder={folder}",
        "model.unet.activation_checkpointing=true",
        "batch.global_size=1",
        "batch.micro_size=1",
        f"first_stage.weights={folder}/first_stage.safetensors",
        f"data.url={folder}/openmoji",
        "data.prepare={_target_: data.sources.openmoji.OpenMoji, size: 256}",
        "data.workers=0",
        f"checkpoint.every={STEPS}",
        f"run.folder={folder}/run",
    ]


def make_ready(folder: Path) -> None:
    """Writes an untrained first stage and the shards, and checks the settings as `ldm train` does."""
    import torch
    from hydra.utils import instantiate

    from evaluation.first_stage import save_first_stage
    from tests.training.runs import composed
    from training import train
    from training.dataset import make_ready as make_data_ready

    config = composed([*settings(folder), f"steps={STEPS}"])
    torch.manual_seed(0)
    save_first_stage(instantiate(config.first_stage.autoencoder).state_dict(), folder / "first_stage.safetensors")
    train.check_here(config, 1)
    Path(config.run.folder).mkdir()
    make_data_ready(config)


def begin(folder: Path) -> dict[str, Any]:
    """Two steps of the real loop, which saves at its end; then the loss that the third step will find."""
    import torch

    from tests.training.runs import train

    ranks = alone()
    task, rows = train(ranks, settings(folder), folder / "run", STEPS)
    with contextlib.closing(next_batches(folder, ranks)) as batches, torch.no_grad():
        losses, t = task.losses(next(batches))
        expected = task.weighted(losses, t).mean().item()
    steps = [row for row in rows if row["step"]]
    return {
        "parameters": sum(torch.Size(shape).numel() for shape in task.engine.shapes.values()),
        "losses": [row["train/loss"] for row in steps],
        "step_seconds": [row["speed/step_seconds"] for row in steps],
        "save_seconds": steps[-1]["checkpoint/stall_seconds"],
        "expected": expected,
    }


def go_on(folder: Path) -> dict[str, Any]:
    """Restores the checkpoint, and takes the third step."""
    from hydra.utils import instantiate

    from tests.training.runs import composed
    from training.build import build_task
    from training.checkpoint import Checkpoints
    from training.modules import WithoutInitialisation

    ranks = alone()
    config = composed([*settings(folder), f"steps={STEPS + 1}"])
    with WithoutInitialisation():  # everything is to come from the checkpoint
        task = build_task(config, ranks)
    started = time.monotonic()
    manifest = Checkpoints(folder / "run" / "checkpoints", ranks).restore_newest(task.engines)
    restored = time.monotonic()
    assert manifest is not None and manifest.step == STEPS
    shutil.rmtree(folder / "run" / "checkpoints")  # moments of all weights, from this step on, need its room
    with contextlib.closing(next_batches(folder, ranks)) as batches:
        rate = instantiate(config.learning_rate).at(STEPS, STEPS + 1, config.batch.global_size)
        metrics = task.train_step(batches, STEPS, rate)
    return {
        "restore_seconds": restored - started,
        "step_seconds": time.monotonic() - restored,
        "loss": metrics["loss"].item(),
        "updates": task.engine.updates,
    }


def alone() -> Any:
    """The one rank."""
    import torch

    from training.distributed import Distributed

    return Distributed(0, 1, 0, torch.device("cpu"))


def next_batches(folder: Path, ranks: Any) -> Iterator[Any]:
    """Those of the third step on."""
    from hydra.utils import instantiate

    from tests.training.runs import composed
    from training.build import build_loader
    from training.dataset import training_sources

    config = composed([*settings(folder), f"steps={STEPS + 1}"])
    storage = instantiate(config.data.storage)
    return build_loader(config, training_sources(config, storage), storage, ranks).batches(STEPS)


def apart(part: str, folder: Path) -> dict[str, Any]:
    """What a part found, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.full_size", "--folder", str(folder), "--part", part]
    subprocess.run(command, check=True, env=os.environ | ALLOCATOR | {"LOCAL_RANK": "0"})
    found: dict[str, Any] = json.loads((folder / f"{part}.json").read_text())
    return found


def on_disk(folder: Path) -> int:
    """Bytes that the files of a folder take, holes not counted."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def measure(folder: Path) -> bool:
    """Prints the table; True when all of it is as required."""
    make_ready(folder)
    first = apart("begin", folder)
    checkpoint = next((folder / "run" / "checkpoints").glob("step-*"))
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    taken = on_disk(checkpoint)
    second = apart("go_on", folder)
    peak = max(first["peak_bytes"], second["peak_bytes"]) / 2**30
    difference = abs(second["loss"] / first["expected"] - 1)
    losses = ", ".join(f"{loss:.6f}" for loss in first["losses"])
    steps = ", ".join(f"{seconds:.0f}" for seconds in (*first["step_seconds"], second["step_seconds"]))
    peaks = ", ".join(f"{part['peak_bytes'] / 2**30:.1f}" for part in (first, second))
    each = size / first["parameters"]
    show(
        [
            ("parameters that are trained", f"{first['parameters']:,}", f"{PARAMETERS:,}"),
            ("losses of the first two steps", losses, ""),
            ("loss of step 3: before stopping, after resuming", f"{first['expected']:.6f}, {second['loss']:.6f}", ""),
            ("  relative difference", f"{difference:.1e}", "at most 1.0e-06"),
            ("seconds of the three steps", steps, ""),
            ("seconds of saving, of restoring", f"{first['save_seconds']:.0f}, {second['restore_seconds']:.0f}", ""),
            ("checkpoint, bytes a parameter", f"{each:.2f}", "16 within 2 %"),
            ("  on the disk, without moments that are zero yet", f"{taken / 1e9:.1f} GB of {size / 1e9:.1f}", ""),
            ("peak memory of the first process and of the second", f"{peaks} GiB", f"below {MEMORY_GIB} GiB"),
            ("both processes, the data made before", f"{first['seconds'] + second['seconds']:.0f} s", ""),
        ]
    )
    return (
        first["parameters"] == PARAMETERS
        and difference <= 1e-6
        and abs(each / 16 - 1) < 0.02
        and peak < MEMORY_GIB
        and second["updates"] == STEPS + 1
    )


def main() -> None:
    """Status 1 when something isn't as required."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--part", choices=("begin", "go_on"))
    arguments = parser.parse_args()
    if arguments.part is not None:
        started = time.monotonic()
        found = {"begin": begin, "go_on": go_on}[arguments.part](arguments.folder)
        found |= {"seconds": time.monotonic() - started, "peak_bytes": resident("VmHWM")}
        (arguments.folder / f"{arguments.part}.json").write_text(json.dumps(found))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        sys.exit(not measure(Path(folder)))


if __name__ == "__main__":
    main()
