"""The demo, measured beside what it has to reach. Takes a quarter of an hour.

python -m tests.benchmarks.demo                 # trains a new run and measures it
python -m tests.benchmarks.demo --run runs/demo  # reads a finished run; its wall time is then not known

Ends with status 1 where a requirement is missed.
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
MOST_MINUTES, MOST_OF_UNTRAINED, MOST_MEGABYTES = 15.0, 0.60, 4.0
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
            missed = show(figures(run, seconds))
    else:
        missed = show(figures(arguments.run, seconds))
    sys.exit(missed)


def figures(run: Path, seconds: float | None) -> list[tuple[str, str, str, bool]]:
    """What the run and the committed first stage measure, what is required, and whether that is missed."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["step"]]
    results = read_results(run)
    before, after = (r.measured["frechet"] for r in (results[0], results[-1]))
    step_seconds = sum(row["speed/step_seconds"] for row in rows)
    waited = sum(row["data/wait_seconds"] for row in rows)
    memory = max(value for row in rows for key, value in row.items() if key.startswith("memory/"))
    size = FIRST_STAGE.stat().st_size
    parameters = sum(tensor.numel() for tensor in load_file(FIRST_STAGE).values())
    minutes = 0.0 if seconds is None else seconds / 60
    name, ratio = results[0].measured["frechet_name"], after / before
    return [
        (
            "wall time of the command",
            "not known" if seconds is None else f"{minutes:.1f} min",
            f"at most {MOST_MINUTES:.0f} min",
            minutes > MOST_MINUTES,
        ),
        (f"{name}, untrained", f"{before:.1f}", "", False),
        (f"{name}, trained", f"{after:.1f}", "", False),
        ("ratio of the two", f"{ratio:.3f}", f"at most {MOST_OF_UNTRAINED:.2f}", ratio > MOST_OF_UNTRAINED),
        ("images a second in training", f"{rows[-1]['images_seen'] / step_seconds:.1f}", "", False),
        ("share of time waiting for data", f"{waited / step_seconds:.1%}", "", False),
        ("peak memory of a rank", f"{memory:.2f} GiB", "", False),
        (
            "committed first stage",
            f"{size / 1e6:.2f} MB, {parameters:,} parameters",
            f"at most {MOST_MEGABYTES:.0f} MB",
            size > MOST_MEGABYTES * 1e6,
        ),
    ]


def show(table: list[tuple[str, str, str, bool]]) -> bool:
    """Prints the table; whether anything required is missed."""
    width = max(len(name) for name, *_ in table)
    print(f"{'':<{width}}  {'measured':>32}  required")
    for name, measured, required, missed in table:
        print(f"{name:<{width}}  {measured:>32}  {required}{'   MISSED' if missed else ''}")
    return any(missed for *_, missed in table)


if __name__ == "__main__":
    main()
