"""A run under random faults, beside a calm one. Exit status 1 when something was lost. About 20 s a fault.

python -m tests.benchmarks.chaos --faults 50
python -m tests.benchmarks.chaos --minutes 10     # as many as come about in that time
python -m tests.benchmarks.chaos --uploads        # checkpoints go to the store, too, and must be whole there

A tiny demo trains on two ranks, from an S3 store behind a proxy. One fault after another hits it at a random moment:
amid start-up, a step or a save. Whoever ends is started again by the same command, as slurm/train.sbatch does: statuses
0 and 2 are final. In the end losses, weights, moments and averages must be those of a run that nobody disturbed, bit
for bit, each step there once, and nothing left behind. run.max_failures is raised, as being killed every few seconds is
no crash loop; checkpoints lie on a small disk of their own, which takes root.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from evaluation.goodput import in_words
from tests.benchmarks.demo import show
from tests.chaos.faults import drawn
from tests.chaos.telling import Teller
from tests.chaos.trial import Outcome, table, trial

FAULTS_A_MINUTE = 6
"""More than there ever are; steps are planned for so many."""


def main() -> None:
    """Prints a line a fault, then what they cost by kind, and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, help="so many, 50 unless --minutes is given")
    parser.add_argument("--minutes", type=float, help="make faults for so long, or for that long at most")
    parser.add_argument("--seed", type=int, default=0, help="of kinds, victims and moments")
    parser.add_argument("--uploads", action="store_true", help="have the run bring its checkpoints to the store, too")
    parser.add_argument("--keep", action="store_true", help="keep the runs and their logs, also when all is well")
    arguments = parser.parse_args()
    minutes = float("inf") if arguments.minutes is None else arguments.minutes
    wanted = arguments.faults or (50 if arguments.minutes is None else 1)
    number = wanted if arguments.faults or arguments.minutes is None else int(minutes * FAULTS_A_MINUTE)
    faults = drawn(number, random.Random(arguments.seed))
    folder = Path(tempfile.mkdtemp(prefix="ldm-chaos-"))
    outcome = trial(folder, faults, arguments.seed, minutes, Teller(), arguments.uploads)
    lost = bool(outcome.problems) or outcome.survived < wanted
    print("\n" + "\n".join(table(outcome.records)) + "\n")
    show(figures(outcome, wanted))
    print(in_words(outcome.goodput))
    for problem in outcome.problems:
        print(f"problem: {problem}")
    print(f"verdict: {outcome.survived} faults survived, {'not all is as without them' if lost else 'nothing lost'}")
    if lost or arguments.keep:
        print(f"runs and logs: {folder}")
    else:
        shutil.rmtree(folder)
    sys.exit(int(lost))


def figures(outcome: Outcome, wanted: int) -> list[tuple[str, str, str]]:
    """Measured beside required."""
    return [
        ("faults survived", str(outcome.survived), f"at least {wanted}"),
        ("not as the calm run, or left behind", str(len(outcome.problems)), "0"),
        ("starts", str(len(outcome.statuses)), ""),
        ("steps made again", str(outcome.goodput.lost_steps), ""),
        ("goodput", f"{outcome.goodput.fraction:.1%}", ""),
        ("time under faults", f"{outcome.seconds / 60:.1f} min", ""),
    ]


if __name__ == "__main__":
    main()
