"""The results of evaluations in a run folder: evaluation/<protocol>-step<N>.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError

FOLDER = "evaluation"


@dataclass(frozen=True)
class Result:
    """One evaluation of one set of weights.

    Two results can be compared when `evaluation.compare.differences` finds none: when protocol, weights, networks and
    data are equal.
    measured: the fields of evaluation.measure.Measured. paper: published numbers of the same protocol,
    each {"name", "frechet", "score", "others"}. data: fingerprints of the samples' shards and of the kept reference,
    where they are known. images: the key of the images that were measured, see evaluation.drawing.images_key.
    """

    step: int
    weights: str
    protocol: dict[str, Any]
    protocol_hash: str
    measured: dict[str, Any]
    seconds: float
    paper: list[dict[str, Any]]
    data: dict[str, str | None] = field(default_factory=dict)
    images: str | None = None


def write_result(run_folder: Path, result: Result) -> Path:
    """Writes the result, whole or not at all, in place of an earlier one of the same protocol and step."""
    path = run_folder / FOLDER / f"{result.protocol['name']}-step{result.step:08d}.json"
    write_result_file(path, result)
    return path


def write_result_file(path: Path, result: Result) -> None:
    """Writes the result to a file, whole or not at all."""
    write_text(path, json.dumps(vars(result), indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def read_result(path: Path) -> Result:
    """The result in a file. Raises EvaluationError when there is none."""
    try:
        return Result(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise EvaluationError(
            f"{path} is no result of `ldm evaluate`: {error}; give a file of a run's folder evaluation/"
        ) from error


def read_results(run_folder: Path) -> list[Result]:
    """All results in the run folder, by protocol and step."""
    results = [read_result(path) for path in (run_folder / FOLDER).glob("*-step*.json")]
    return sorted(results, key=lambda result: (result.protocol["name"], result.protocol_hash, result.step))
