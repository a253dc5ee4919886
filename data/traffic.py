"""How much is read from stores."""

from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
_KEPT = 16384  # requests, far above those of a batch


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was asked of stores. bytes_read: that came; retries: requests that were made once more, after a failure."""

    bytes_read: int = 0
    retries: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.bytes_read + other.bytes_read, self.retries + other.retries)


class TrafficLog:
    """Takes down traffic of any number of threads; where nobody takes it, the last of it."""

    def __init__(self) -> None:
        self._log: deque[Traffic] = deque(maxlen=_KEPT)

    def received(self, answer: T) -> T:
        """Counts a store's answer, where it is bytes, and gives it back."""
        if isinstance(answer, bytes):
            self._log.append(Traffic(bytes_read=len(answer)))
        return answer

    def retried(self) -> None:
        """Counts a request that is made once more."""
        self._log.append(Traffic(retries=1))

    def take(self) -> Traffic:
        """All since the last call."""
        total = Traffic()
        with suppress(IndexError):
            while True:
                total += self._log.popleft()
        return total
