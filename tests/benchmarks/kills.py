"""`kill -9` at random moments, beside a run that nobody kills. Exit status 1 when something was lost. Some 4 s each.

python -m tests.benchmarks.kills --kills 100

A tiny demo trains on two ranks, and saves every third step to a small disk and from there to an S3 store. One rank or
both are killed at start-up, amid steps, saves and uploads; some with the disk full, or ending amid a file, or with the
store away, when the run may end by itself before; and some lose the disk, so that the store alone is left. Each time
what is left must be whole, and no complete checkpoint gone; the next start must go on from the newest; and in the end
losses, weights, moments and averages must be those of the undisturbed run, bit for bit. The small disk takes root.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.benchmarks.demo import show
from tests.chaos.telling import Teller
from tests.kills.kinds import drawn
from tests.kills.trial import MOST_LOST, Outcome, trial


def main() -> None:
    """Prints a line a kill, then measured beside required."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of kinds, victims and moments")
    parser.add_argument("--keep", action="store_true", help="keep the runs and the ranks' log, also when all is well")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ldm-kills-"))
    started = time.monotonic()
    outcome = trial(folder, drawn(arguments.kills, random.Random(arguments.seed)), arguments.seed, Teller())
    show(figures(outcome, arguments.kills, time.monotonic() - started))
    for problem in outcome.problems:
        print(f"problem: {problem}")
    lost = outcome.survived < arguments.kills
    if lost or arguments.keep:
        print(f"runs and log: {folder}")
    else:
        shutil.rmtree(folder)
    sys.exit(int(lost))


def figures(outcome: Outcome, wanted: int, seconds: float) -> list[tuple[str, str, str]]:
    """Measured beside required."""
    records = outcome.records
    within = sum(bool(record.amid) for record in records)
    trained = [record for record in records if record.trained]
    kept = [record.lost for record in trained if not record.kind.loses_disk]
    gone = [record.lost for record in trained if record.kind.loses_disk]
    kinds = Counter(record.kind.name for record in records)
    gave_up = Counter(record.kind.name for record in records if record.gave_up)
    return [
        ("kills survived", str(outcome.survived), f"at least {wanted}"),
        *((f"  {name}", f"{count}", "") for name, count in kinds.items()),
        ("amid a save or an upload", f"{within}: {amid(records)}", f"at least {-(-wanted // 3)}"),
        ("ended by themselves before", ", ".join(f"{count} {name}" for name, count in gave_up.items()) or "0", ""),
        ("not as the undisturbed run, bit for bit", str(len(outcome.problems)), "0"),
        ("steps in all", str(outcome.steps), ""),
        ("steps lost with a kill", of_lost(kept), f"at most {MOST_LOST}"),
        ("  and with the disk", of_lost(gone), ""),
        ("time", f"{seconds / 60:.1f} min", ""),
    ]


def amid(records: list) -> str:
    """How many of which."""
    counts = Counter(what for record in records for what in record.amid)
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))


def of_lost(steps: list[int]) -> str:
    """Most and mean."""
    return f"at most {max(steps)}, {statistics.mean(steps):.1f} on average" if steps else "none"


if __name__ == "__main__":
    main()
