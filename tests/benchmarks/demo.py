"""The demo, measured beside what it has to reach. Takes a quarter of an hour.

python -m tests.benchmarks.demo                 # trains a new run and measures it
python -m tests.benchmarks.demo --run runs/demo  # reads a finished run; its wall time is then not known
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

from evaluation.results import read_results

PROJECT = Path(__file__).resolve().parents[2]
FIRST_STAGE = PROJECT / "conf" / "weights" / "demo_first_stage.safetensors"


def main() -> None:
    """Prints one line a figure: what, measured, required."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    arguments = parser.parse_args()
    seconds = None
    if arguments.run is None:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "demo"
            started = time.monotonic()
            command = [sys.executable, "-m", "training.cli", "train", "experiment=demo", f"run.folder={run}"]
            subprocess.run(command, cwd=PROJECT, check=True)
            seconds = time.monotonic() - started
            show(figures(run, seconds))
    else:
        show(figures(arguments.run, seconds))


def figures(run: Path, seconds: float | None) -> list[tuple[str, str, str]]:
    """What the run and the committed first stage measure."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["step"]]
    results = read_results(run)
    before, after = (r.measured["frechet"] for r in (results[0], results[-1]))
    step_seconds = sum(row["speed/step_seconds"] for row in rows)
    waited = sum(row["data/wait_seconds"] for row in rows)
    memory = max(value for row in rows for key, value in row.items() if key.startswith("memory/"))
    size = FIRST_STAGE.stat().st_size
    parameters = sum(tensor.numel() for tensor in load_file(FIRST_STAGE).values())
    return [
        ("wall time of the command", "not known" if seconds is None else f"{seconds / 60:.1f} min", "at most 15 min"),
        (results[0].measured["frechet_name"] + ", untrained", f"{before:.1f}", ""),
        (results[0].measured["frechet_name"] + ", trained", f"{after:.1f}", f"at most {0.6 * before:.1f}"),
        ("ratio of the two", f"{after / before:.2f}", "at most 0.60"),
        ("images a second in training", f"{rows[-1]['images_seen'] / step_seconds:.1f}", ""),
        ("share of time waiting for data", f"{waited / step_seconds:.1%}", ""),
        ("peak memory of a rank", f"{memory:.2f} GiB", ""),
        ("committed first stage", f"{size / 1e6:.2f} MB, {parameters:,} parameters", "at most 4 MB"),
    ]


def show(table: list[tuple[str, str, str]]) -> None:
    """Prints the table."""
    width = max(len(name) for name, _, _ in table)
    print(f"{'':<{width}}  {'measured':>32}  required")
    for name, measured, required in table:
        print(f"{name:<{width}}  {measured:>32}  {required}")


if __name__ == "__main__":
    main()
