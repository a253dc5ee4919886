"""Answers to numbered questions, kept line by line, so that whoever is ended goes on with the next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Answers:
    """Answers in files below a folder, one file a rank.

    Args:
        folder: of these questions alone.
        rank: which writes here.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._own = folder, folder / f"answers-rank-{rank}.jsonl"

    def read(self) -> dict[int, Any]:
        """All answers by their questions' numbers, whichever rank gave them; a line that a kill cut off is none."""
        found: dict[int, Any] = {}
        for path in sorted(self._folder.glob("answers-rank-*.jsonl")):
            for line in path.read_text().splitlines():
                try:
                    number, answer = json.loads(line)
                    found[int(number)] = answer
                except (ValueError, TypeError):
                    continue
        return found

    def add(self, number: int, answer: int | list[float]) -> None:
        """Keeps an answer at once."""
        with self._own.open("a") as file:
            # The line break comes first: it ends a line that a kill cut off.
            file.write(f"\n{json.dumps([number, answer])}")
