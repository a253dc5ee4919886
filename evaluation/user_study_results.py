"""`ldm user_study results A.json B.json ...`: whom the participants of a study preferred."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError
from evaluation.proportion import wilson_interval


@dataclass(frozen=True)
class Preference:
    """How often one source was chosen before another: a share with its 95 % interval, of so many answers.

    The interval takes answers for independent; with few participants, who each have a taste, it is too narrow.
    """

    task: int
    preferred: str
    other: str
    share: float
    low: float
    high: float
    answers: int
    participants: int


def main(arguments: list[str]) -> None:
    """Prints the preferences of all participants whose files are named."""
    if not arguments or arguments[0] in ("--help", "-h"):
        print(
            "usage: ldm user_study results A.json B.json ...\n\nFiles that participants of one study have saved at its "
            "end.",
            file=sys.stderr,
        )
        raise SystemExit(0 if arguments else 2)
    try:
        found = preferences([read_answers(Path(argument)) for argument in arguments])
    except EvaluationError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for row in found:
        print(
            f"task {row.task}: {row.preferred} preferred over {row.other}: {100 * row.share:.1f} % "
            f"({100 * row.low:.1f} to {100 * row.high:.1f} %, of {row.answers} answers of {row.participants})"
        )


def read_answers(path: Path) -> dict[str, Any]:
    """What one participant has saved. Raises EvaluationError when the file is something else."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        fits = isinstance(found["study"], str) and isinstance(found["participant"], str) and len(found["answers"]) > 0
        for answer in found["answers"]:
            sides = {str(answer["left"]), str(answer["right"])}
            fits = fits and answer["chosen"] in sides and len(sides) == 2 and answer["task"] in (1, 2)
        if not fits:
            raise ValueError("an answer is missing, or is none of the two that were to be chosen from")
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = f"{type(error).__name__}: {error}"
        raise EvaluationError(
            f"{path} holds no participant's answers ({told}); give a file that a study saved"
        ) from error
    return found


def preferences(participants: Sequence[dict[str, Any]]) -> list[Preference]:
    """Of each task and pair of sources; in task 1 the share is of those who took a method's picture for the real one.

    participants: of `read_answers`. Raises EvaluationError when they are of different studies, or one is there twice.
    """
    studies = sorted({found["study"] for found in participants})
    if len(studies) != 1:
        raise EvaluationError(f"answers of {len(studies)} studies, {', '.join(studies)}: put one study's together")
    names = [found["participant"] for found in participants]
    if twice := {name for name in names if names.count(name) > 1}:
        raise EvaluationError(f"participant {sorted(twice)[0]!r} is there more than once; give each file once")
    chosen: dict[tuple[int, str, str], list[bool]] = {}
    for found in participants:
        for answer in found["answers"]:
            # A method before the real picture, else by name: the same pair whatever the sides.
            first, second = sorted((answer["left"], answer["right"]), key=lambda name: (name == "real", name))
            chosen.setdefault((answer["task"], first, second), []).append(answer["chosen"] == first)
    rows = []
    for (task, first, second), answers in sorted(chosen.items()):
        low, high = wilson_interval(sum(answers), len(answers))
        share = sum(answers) / len(answers)
        rows.append(Preference(task, first, second, share, low, high, len(answers), len(names)))
    return rows
