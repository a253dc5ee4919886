"""How tasks that know nothing of one another do the same work together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from data.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Share:
    """Task `number` of `of`, from 0. Raises DataError when there is no such task."""

    number: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise DataError(
                f"share.number={self.number}, share.of={self.of}: tasks are numbered from 0 to share.of - 1"
            )

    def order(self, items: Sequence[T]) -> list[T]:
        """All items, this task's own first and then those of the others, which may run later or have been killed.

        Another's items come from their end, as it begins at their start. So no task waits for another, each one can
        finish alone, and together they do few items twice: harmless where the result is the same whoever does it.
        """
        return [
            item
            for step in range(self.of)
            for item in list(items[(self.number + step) % self.of :: self.of])[:: -1 if step else 1]
        ]
