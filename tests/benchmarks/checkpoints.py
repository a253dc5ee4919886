"""Saving and restoring beside DeepSpeed's own, and beside a plain write to the same disk. Takes some minutes.

python -m tests.benchmarks.checkpoints [--folder DIR] [--rounds 3]

302M parameters in bf16 under ZeRO 2 on two processes, one thread each: fp32 weights, two moments of Adam and the EMA,
16 bytes a parameter, 4.83 GB. Each round does everything once, one after the other; of each the best round counts, as
other work on the machine only adds. Files are out of the page cache before they are read. Needs 16 GiB of memory and
16 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from tests.benchmarks.demo import show
from tests.training.ranks import RankGroup
from training.checkpoint import Checkpoints
from training.checkpoint_files import MANIFEST, folder_name
from training.distributed import Distributed
from training.engine import Engine
from training.engine_settings import EngineSettings
from training.optimizers.adamw import AdamW

RANKS = 2
WIDTH, INNER = 2048, 4096
MEMORY_GIB = 16.0
CHUNK_BYTES = 8 * 2**20


def main() -> None:
    """Prints one line a figure: what, measured, required."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write; a new folder below it, removed afterwards")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=18, help="of 16.8M parameters; fewer to try it out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        group = RankGroup(RANKS)
        try:
            with peak_memory_gib() as peak:
                rounds = group.run(measure, Path(folder), arguments.rounds, arguments.blocks)
        finally:
            group.kill()
    show(figures(rounds, peak()))


def figures(rounds: list[dict[str, float]], peak: float) -> list[tuple[str, str, str]]:
    """The table of these rounds."""
    for number, found in enumerate(rounds):
        print(f"round {number}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    best = {name: min(found[name] for found in rounds) for name in rounds[-1]}
    limit = 0.2 * best["deepspeed save"]
    size, parameters = best["bytes"], best["parameters"]
    plain, written = (size / best[name] / 1e6 for name in ("plain write", "write"))
    return [
        ("parameters", f"{parameters / 1e6:.1f} M", "at least 300 M"),
        ("stalled by a save", f"{best['stall']:.2f} s", f"at most {limit:.2f} s"),
        ("  DeepSpeed's save_checkpoint", f"{best['deepspeed save']:.2f} s", ""),
        ("  ratio", f"{best['stall'] / best['deepspeed save']:.3f}", "at most 0.200"),
        ("  by the first save", f"{rounds[0]['stall']:.2f} s", f"at most {limit:.2f} s"),
        ("  its memory, got ready behind training", f"{rounds[0]['memory']:.2f} s", ""),
        ("written behind training", f"{written:.0f} MB/s", f"at least {0.9 * plain:.0f} MB/s"),
        ("  plain sequential write", f"{plain:.0f} MB/s", ""),
        ("  ratio", f"{written / plain:.2f}", "at least 0.90"),
        ("restored, checksums included", f"{best['restore']:.2f} s", f"at most {best['deepspeed load']:.2f} s"),
        ("  DeepSpeed's load_checkpoint", f"{best['deepspeed load']:.2f} s", ""),
        ("bytes a parameter", f"{size / parameters:.3f}", "15.68 to 16.32"),
        ("peak memory of all processes, page cache apart", f"{peak:.1f} GiB", f"below {MEMORY_GIB:.0f} GiB"),
    ]


def measure(ranks: Distributed, folder: Path, rounds: int, blocks: int) -> list[dict[str, float]]:
    """Seconds by what was done, for each round; the slowest rank's."""
    engine = build(ranks, blocks)
    checkpoints = Checkpoints(folder / "ours", ranks)
    found = []
    for number in range(rounds):
        seconds: dict[str, float] = {"parameters": sum(torch.Size(shape).numel() for shape in engine.shapes.values())}
        if number == 0:
            seconds["memory"] = get_memory(checkpoints, engine, ranks)

        def timed(name: str, work: Callable[[], Any], seconds: dict[str, float] = seconds) -> None:
            os.sync()
            ranks.barrier()
            started = time.perf_counter()
            work()
            seconds[name] = max(ranks.gather_objects(time.perf_counter() - started))

        stall = 0.0

        def save(step: int = number + 1) -> None:
            nonlocal stall
            stall = checkpoints.save({"model": engine}, step, 0, {})
            checkpoints.finish()

        timed("save", save)
        ours = folder / "ours" / folder_name(number + 1)
        assert (ours / MANIFEST).exists()
        seconds["stall"] = max(ranks.gather_objects(stall))
        seconds["write"] = seconds["save"] - seconds["stall"]
        seconds["bytes"] = sum(path.stat().st_size for path in ours.iterdir())
        timed("plain write", lambda: plain_write(engine, folder / "plain") if ranks.is_main else None)
        timed("deepspeed save", lambda: engine._engine.save_checkpoint(str(folder / "theirs"), tag="saved"))
        wanted = fingerprint(engine)
        forget(engine)
        out_of_cache(folder)
        timed("restore", lambda: checkpoints.restore_newest({"model": engine}))
        assert fingerprint(engine) == wanted
        forget(engine)
        out_of_cache(folder)
        timed("deepspeed load", lambda: engine._engine.load_checkpoint(str(folder / "theirs"), tag="saved"))
        assert fingerprint(engine) == wanted
        ranks.barrier()
        if ranks.is_main:
            shutil.rmtree(folder / "theirs")
            shutil.rmtree(folder / "ours")
        ranks.barrier()
        found.append(seconds)
    return found


def get_memory(checkpoints: Checkpoints, engine: Engine, ranks: Distributed) -> float:
    """Seconds until host memory for saves is there, which a run gets while its first steps are made."""
    ranks.barrier()
    started = time.perf_counter()
    checkpoints.make_room({"model": engine})
    assert checkpoints._memory is not None
    checkpoints._memory.result()
    return float(max(ranks.gather_objects(time.perf_counter() - started)))


def build(ranks: Distributed, blocks: int) -> Engine:
    """An engine whose whole state holds numbers, as after some training: zeros never written to take no memory."""
    torch.manual_seed(0)
    with torch.device("meta"):
        layers = [layer for _ in range(blocks) for layer in (nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH))]
    module = nn.Sequential(*layers).to_empty(device="cpu").to(torch.bfloat16)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)
    settings = EngineSettings(zero_stage=2, precision="bf16")
    engine = Engine(module, settings, AdamW(module.parameters(), 1e-4), 1, 1, ranks.world)
    for fragment in engine.fragments():
        for number, kind in enumerate(engine.kinds):
            if kind != "param":
                torch.mul(fragment.tensors["param"], number + 1, out=fragment.tensors[kind])
    return engine


def fingerprint(engine: Engine) -> list[float]:
    """A number for each fragment and kind."""
    return [fragment.tensors[kind].sum().item() for fragment in engine.fragments() for kind in engine.kinds]


def forget(engine: Engine) -> None:
    """Overwrites the state, so that a restore has something to do."""
    for fragment in engine.fragments():
        for kind in engine.kinds:
            fragment.tensors[kind].fill_(1.0)


def plain_write(engine: Engine, path: Path) -> None:
    """One process writes as many bytes as both ranks' files have, one after the other, and waits for the disk."""
    fragments = [fragment.tensors[kind] for fragment in engine.fragments() for kind in engine.kinds]
    with path.open("wb") as file:
        for _ in range(RANKS):
            for tensor in fragments:
                values = memoryview(tensor.numpy()).cast("B")
                for start in range(0, len(values), CHUNK_BYTES):
                    file.write(values[start : start + CHUNK_BYTES])
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def out_of_cache(folder: Path) -> None:
    """Has the kernel drop what it keeps of the files below `folder`."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


@contextmanager
def peak_memory_gib() -> Any:
    """Gives a function that tells the most memory that this process and its children had together, without what they
    share: libraries, and the page cache of files."""
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        me = psutil.Process()
        while not done.wait(0.05):
            now = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    memory = process.memory_info()
                    now += memory.rss - memory.shared
                except psutil.Error:
                    continue
            most = max(most, now)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: most / 2**30
    finally:
        done.set()
        watcher.join()


if __name__ == "__main__":
    main()
