"""Winoground: two captions of the same words, two images, and which belongs to which (Thrush et al. 2022)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.errors import EvaluationError
from evaluation.image_folder import read_picture
from evaluation.proportion import wilson_interval

CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}


class Winoground:
    """The published folder: examples.jsonl, and images/NAME.png. A picture's candidates are its example's two captions.

    Picture 2 e + i is image i of example e, and text 2 e + c is its caption c.

    Args:
        folder: of both.
        image_size: pictures have their shorter side scaled to it and are cut to their middle; None: as they are.
        count: the first so many examples; None: all.

    Raises EvaluationError when the folder isn't such a one, or has fewer examples.
    """

    template = "{}"

    def __init__(self, folder: Path, image_size: int | None, count: int | None) -> None:
        path = folder / "examples.jsonl"
        try:
            examples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            if count is not None and not 1 <= count <= len(examples):
                raise EvaluationError(
                    f"data.pictures={count}: give 1 to {len(examples)}, as many examples as there are"
                )
            examples = examples[:count]
            self.texts: Sequence[str] = [str(example[f"caption_{c}"]) for example in examples for c in (0, 1)]
            names = [str(example[f"image_{i}"]) for example in examples for i in (0, 1)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EvaluationError(
                f"data.winoground={folder}: {error!r}; give the folder of Winoground's examples.jsonl, with its images "
                "unpacked in images/"
            ) from error
        self._paths = [folder / "images" / f"{name.removesuffix('.png')}.png" for name in names]
        if absent := [path for path in self._paths if not path.is_file()]:
            raise EvaluationError(f"data.winoground={folder}: {len(absent)} pictures are missing, such as {absent[0]}")
        self._size = image_size
        listing = [[path.name, path.stat().st_size] for path in self._paths]
        self.fingerprint = hashlib.sha256(json.dumps([listing, self.texts]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._paths)

    def image(self, number: int) -> Tensor:
        """uint8 [3, H, W]. Raises EvaluationError when the file can't be read."""
        return read_picture(self._paths[number], self._size)

    def candidates(self, number: int) -> tuple[Sequence[int], int]:
        """Numbers of the two captions, and the place of the picture's own."""
        return (number - number % 2, number - number % 2 + 1), number % 2


def winoground_summary(answers: Mapping[int, Sequence[float]], pictures: int) -> dict[str, Any]:
    """The three scores, each with its 95 % interval, and chance.

    answers: for every picture, by number, the scores of its two captions. Raises EvaluationError when one is missing.
    """
    if missing := [number for number in range(pictures) if number not in answers]:
        raise EvaluationError(f"{len(missing)} of {pictures} pictures have no answer, such as number {missing[0]}")
    by_image = torch.tensor([answers[number] for number in range(pictures)], dtype=torch.float64)  # [2 N, captions]
    count = pictures // 2
    found: dict[str, Any] = {}
    for name, share in winoground_scores(by_image.reshape(count, 2, 2).mT).items():
        low, high = wilson_interval(round(share * count), count)
        found[name] = {"score": share, "low": low, "high": high, "chance": CHANCE[name]}
    return {**found, "examples": count}


def winoground_told(result: Mapping[str, Any]) -> str:
    """The scores, a line each."""
    lines = []
    for name in CHANCE:
        score, low, high, chance = (f"{100 * result[name][key]:.1f} %" for key in ("score", "low", "high", "chance"))
        lines.append(f"{name}: {score} ({low} to {high}) of {result['examples']} examples; chance: {chance}")
    return "\n".join(lines)


def winoground_scores(scores: Tensor) -> dict[str, float]:
    """Shares of the examples that are right, by Eq. 1 to 3 of the paper: text, image and group score.

    Text: for each image its caption scores higher than the other. Image: for each caption its image does. Group: both.
    Equal scores are wrong. By chance 1/4, 1/4 and 1/6.

    scores: [N, captions, images], float [N, 2, 2], of which [:, i, i] belong together; higher is better. A diffusion
    model's errors can be compared over captions as they are, and over images only once an image's own difficulty, its
    error without a caption, is taken off. Raises ValueError on other shapes, no example, and NaN.
    """
    if scores.ndim != 3 or scores.shape[1:] != (2, 2) or len(scores) == 0:
        raise ValueError(f"scores have shape {list(scores.shape)}: give [N, 2, 2], for at least one example")
    if scores.isnan().any():
        raise ValueError("scores hold NaN: whoever gave them failed")
    text = (scores[:, 0, 0] > scores[:, 1, 0]) & (scores[:, 1, 1] > scores[:, 0, 1])
    image = (scores[:, 0, 0] > scores[:, 0, 1]) & (scores[:, 1, 1] > scores[:, 1, 0])
    found = {"text": text, "image": image, "group": text & image}
    return {name: float(right.double().mean()) for name, right in found.items()}
