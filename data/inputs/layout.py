"""Boxes with classes, as tokens (LDM Sec. 4.3.1, App. E.2.1)."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import DataError
from data.inputs import Parts
from data.transforms import BadSample
from data.view import Box


class Layout:
    """A sample's objects as one sequence of tokens: (class, top-left, bottom-right) for each, as published.

    They are read from "objects" in the sample's .json: [{"class": number, "box": [left, top, right, bottom]}], the box
    in pixels of the original picture. Those outside of the cut-out are left out, the largest come first where there
    are too many. Positions lie on a square grid as fine as the vocabulary allows; the vocabulary's last token stands
    for no object. With `crop` the two corners of the cut-out within the picture end the sequence.

    objects: at most so many. vocabulary: tokens, 8,192 in the paper. With 30 objects and crop the sequence has 92.
    """

    needs_image = False

    def __init__(self, objects: int = 30, vocabulary: int = 8192, crop: bool = True) -> None:
        if objects < 1 or vocabulary < 5:
            raise DataError(f"objects={objects} must be at least 1 and vocabulary={vocabulary} at least 5")
        self.objects = objects
        self.vocabulary = vocabulary
        self.crop = crop
        self.sections = math.isqrt(vocabulary)
        self.length = 3 * objects + (2 if crop else 0)

    def read(self, sample: Parts) -> Tensor:
        """Tokens int64 [length]. Raises BadSample "no_layout" when the objects are missing or of another form."""
        view = sample.view
        found = []
        try:
            for entry in sample.details["objects"]:
                left, top, right, bottom = (float(edge) for edge in entry["box"])
                box = view.within((left, top, right, bottom))
                if box is not None:
                    found.append((int(entry["class"]), box))
            return self.tokens(found, view.share)
        except (KeyError, TypeError, ValueError, DataError) as error:
            raise BadSample("no_layout", f"{type(error).__name__}: {error}") from error

    def nothing(self) -> Tensor:
        """Tokens int64 [length] of no object."""
        return self.tokens([], (0.0, 0.0, 1.0, 1.0))

    def parse(self, value: Any) -> Tensor:
        """Tokens int64 [length] of a JSON file, or a list, of objects with boxes as shares of the image's sides."""
        try:
            entries = json.loads(Path(value).read_text()) if isinstance(value, str) else value
            found = [(int(entry["class"]), _box(entry["box"])) for entry in entries]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f'layout {value}: {error}; give [{{"class": 3, "box": [0.1, 0.2, 0.5, 0.9]}}] or a file of it'
            ) from error
        return self.tokens(found, (0.0, 0.0, 1.0, 1.0))

    def tokens(self, found: Sequence[tuple[int, Box]], crop: Box) -> Tensor:
        """int64 [length] of classes and boxes, all as shares of the image's sides.

        Raises DataError for a class that the vocabulary doesn't hold.
        """
        unknown = [number for number, _ in found if not 0 <= number < self.vocabulary - 1]
        if unknown:
            raise DataError(f"class {unknown[0]}: must lie in 0 to {self.vocabulary - 2}")
        by_size = sorted(found, key=lambda item: -_area(item[1]))[: self.objects]
        sequence = [token for number, box in by_size for token in (number, *self._corners(box))]
        sequence += [self.vocabulary - 1] * (3 * (self.objects - len(by_size)))
        return torch.tensor(sequence + (list(self._corners(crop)) if self.crop else []))

    def _corners(self, box: Box) -> tuple[int, int]:
        left, top, right, bottom = (round(edge * (self.sections - 1)) for edge in box)
        return top * self.sections + left, bottom * self.sections + right


def _box(edges: Sequence[float]) -> Box:
    left, top, right, bottom = (float(edge) for edge in edges)
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(f"box {list(edges)} is not left < right, top < bottom within 0 to 1")
    return left, top, right, bottom


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
