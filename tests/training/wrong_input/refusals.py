"""What wrong input must lead to: one message of key, value and remedy, before any process group starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Refused = Callable[[list[str]], str]


@dataclass(frozen=True)
class Wrong:
    """Overrides on top of a tiny run, and what its message must hold: key=value at its start, then the remedy."""

    overrides: tuple[str, ...]
    says: str
    remedy: str


def the_message(out: str, err: str) -> str:
    """What follows "error: ", when that is all there is."""
    assert out == ""
    assert "Traceback" not in err
    [line] = err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def check(message: str, says: str, remedy: str) -> None:
    """The message starts with key and value, and holds the remedy behind them."""
    assert message.startswith(says), message
    assert remedy in message[len(says) :], message
