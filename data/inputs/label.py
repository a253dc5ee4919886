"""The class, as a number."""

from typing import Any

import torch
from torch import Tensor

from data.errors import DataError
from data.inputs import Parts
from data.transforms import BadSample

LABEL = "label"
"""The name that the class has among a model's inputs."""


class Label:
    """The class number in a sample's .cls member, or under "label" in its .json.

    classes: how many there are; `classes` itself is the number that says nothing.
    """

    needs_image = False

    def __init__(self, classes: int) -> None:
        if classes < 1:
            raise DataError(f"classes={classes} must be at least 1")
        self.classes = classes

    def read(self, sample: Parts) -> Tensor:
        """int64 scalar. Raises BadSample "no_label" when there is none, or none of the classes."""
        value: Any = sample.members.get("cls", sample.details.get("label"))
        try:
            number = int(value)
        except (TypeError, ValueError):
            raise BadSample("no_label", f"{value!r} is no class number") from None
        if not 0 <= number < self.classes:
            raise BadSample("no_label", f"{number} is none of {self.classes} classes")
        return torch.tensor(number)

    def nothing(self) -> Tensor:
        """int64 scalar: the class behind the last."""
        return torch.tensor(self.classes)

    def parse(self, value: Any) -> Tensor:
        """int64 scalar. Raises DataError unless value is one of the classes."""
        if not str(value).isdecimal() or int(value) >= self.classes:
            raise DataError(f"label {value}: give a whole number from 0 to {self.classes - 1}")
        return torch.tensor(int(value))
