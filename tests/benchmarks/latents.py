"""The demo's training from latents beside online encoding: images a second.

    python -m tests.benchmarks.latents
    python -m tests.benchmarks.latents --steps 100 --rounds 3

Writes the demo's shards and their latents to a temporary folder, then trains on both in turn, on the demo's two
processes, with nothing looked at meanwhile. Of each run the steps' median counts, of all rounds the median.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
SETTLING_STEPS = 10


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="of each run")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards, latents = Path(folder) / "openmoji", Path(folder) / "latents"
        ldm("prepare", "source=openmoji", "source.size=64", f"url={shards}", "samples_per_shard=512")
        settings = [
            "experiment=demo",
            f"data.url={shards}",
            "data.embedded_store=false",
            "data.prepare=null",
            "monitor.protocol=null",
            "monitor.every=100000",
            "monitor.final_captions=1",
            "monitor.final_sampler_steps=2",
            "tracker.mode=disabled",
            f"steps={arguments.steps}",
        ]
        from_latents = f"data.latents={latents}"
        started = time.monotonic()
        ldm("prepare", "latents", *settings, from_latents, f"run.folder={folder}/encode")
        seconds = time.monotonic() - started
        kinds = {"online encoding": [], "from latents": [from_latents]}
        speeds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for turn in range(arguments.rounds):
            for number, (kind, more) in enumerate(kinds.items()):
                run = Path(folder) / f"run-{number}-{turn}"
                ldm("train", *settings, *more, f"run.folder={run}")
                speeds[kind].append(images_a_second(run))
        print(f"latents of {count(latents)} images written in {seconds:.0f} s, start included")
        print(f"bytes a sample: images {size(shards / 'train') / count(shards / 'train'):,.0f}", end=", ")
        print(f"latents {size(latents) / count(latents):,.0f}")
        for kind, found in speeds.items():
            rounds = ", ".join(f"{speed:.1f}" for speed in found)
            print(f"{kind}: {statistics.median(found):.1f} images/s ({rounds})")
        ratio = statistics.median(speeds["from latents"]) / statistics.median(speeds["online encoding"])
        print(f"from latents x {ratio:.2f}")


def ldm(*arguments: str) -> None:
    """Runs a command to its end."""
    subprocess.run([sys.executable, "-m", "training.cli", *arguments], cwd=PROJECT, check=True)


def images_a_second(run: Path) -> float:
    """The median over a run's steps."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["speed/images_per_second"] for row in rows if row["step"] > SETTLING_STEPS)


def listed(folder: Path) -> list[dict[str, int]]:
    """The shards of a folder and of those below it, from their indices."""
    indices = [json.loads(path.read_text()) for path in sorted(folder.rglob("index.json"))]
    return [shard for index in indices for shard in index["shardlist"]]


def count(folder: Path) -> int:
    """Samples of a folder of shards."""
    return sum(shard["nsamples"] for shard in listed(folder))


def size(folder: Path) -> int:
    """Bytes of a folder's shards."""
    return sum(shard["filesize"] for shard in listed(folder))


if __name__ == "__main__":
    main()
