"""`ldm evaluate compare A B`: two results side by side, if they may be."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError
from evaluation.results import Result, read_result
from evaluation.table import columns, table

ABSENT = "absent"


def main(arguments: list[str]) -> None:
    """Prints the results in two files and what lies between them, or says where their protocols differ."""
    if len(arguments) != 2:
        print(
            "usage: ldm evaluate compare A.json B.json\n\nFiles of runs' evaluation/ folders: RUN/evaluation/*.json. "
            "Results of different protocols are not compared.",
            file=sys.stderr,
        )
        raise SystemExit(0 if arguments in (["--help"], ["-h"]) else 2)
    try:
        print(compare(*(Path(argument) for argument in arguments)))
    except EvaluationError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def compare(one: Path, other: Path) -> str:
    """The two files' results as a table. Raises EvaluationError when they may not be compared."""
    a, b = read_result(one), read_result(other)
    found = list(differences(a, b))
    if found:
        told = "\n".join(f"  {key}: {left} in {one.name}, {right} in {other.name}" for key, left, right in found)
        raise EvaluationError(f"{one} and {other} can't be compared; they differ in\n{told}")
    change: dict[str, float | None] = {}
    left, right = columns(a.measured), columns(b.measured)
    for name, value in right.items():
        before = left.get(name)
        change[name] = None if before is None or value is None else value - before
    return table([(f"{one}, step {a.step}", left), (f"{other}, step {b.step}", right), ("change", change)])


def differences(a: Result, b: Result) -> Iterator[tuple[str, Any, Any]]:
    """Where two results' protocols differ, and what else makes their numbers incomparable: key, value, other value."""
    sides = [
        {
            "protocol": result.protocol,
            "protocol_hash": result.protocol_hash,
            "weights": result.weights,
            "features": result.measured["features"],
            "networks": result.measured.get("networks", []),
            "reference_images": result.measured["reference_images"],
            "data": result.data,
        }
        for result in (a, b)
    ]
    left, right = (dict(_dotted(side, "")) for side in sides)
    for key in [*left, *(key for key in right if key not in left)]:
        if left.get(key, ABSENT) != right.get(key, ABSENT):
            yield key, left.get(key, ABSENT), right.get(key, ABSENT)


def _dotted(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
