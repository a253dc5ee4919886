"""How much is read from stores."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was asked of stores. bytes_read: that came; retries: requests that were made once more, after a failure."""

    bytes_read: int = 0
    retries: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.bytes_read + other.bytes_read, self.retries + other.retries)
