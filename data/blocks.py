"""Blocks of objects in bounded memory, the least recently used leaving first."""

import threading
from collections import OrderedDict
from collections.abc import Iterable

Key = tuple[str, int]  # URL, number of the block
Run = tuple[str, int, int]  # URL, numbers of the first and the last block


class BlockCache:
    """Blocks by (URL, number), at most `capacity_bytes` of them; safe to use from several threads."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.held_bytes = 0
        self._blocks: OrderedDict[Key, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, key: Key) -> bool:
        return key in self._blocks

    def get(self, key: Key) -> bytes | None:
        """The block, now the most recently used; None when it is not here."""
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
            return self._blocks.get(key)

    def put(self, key: Key, block: bytes) -> None:
        """Keep a block, dropping others while they do not fit."""
        with self._lock:
            self.held_bytes += len(block) - len(self._blocks.pop(key, b""))
            self._blocks[key] = block
            while self.held_bytes > self.capacity_bytes:
                self.held_bytes -= len(self._blocks.popitem(last=False)[1])

    def lacking(self, runs: Iterable[Run], block_bytes: int) -> list[Run]:
        """Of these runs those that aren't all here, as long as they fill half of the capacity at most together."""
        found, room = [], self.capacity_bytes // 2 // block_bytes
        for url, first, last in runs:
            if last - first < room and any((url, number) not in self for number in range(first, last + 1)):
                found.append((url, first, last))
                room -= last - first + 1
        return found

    def forget(self, url: str) -> None:
        """Drop every block of `url`."""
        with self._lock:
            for key in [key for key in self._blocks if key[0] == url]:
                self.held_bytes -= len(self._blocks.pop(key))


def runs_of(ranges: Iterable[tuple[str, int, int]], block_bytes: int) -> list[Run]:
    """The runs that cover these (URL, start, stop); neighbours become one run."""
    runs: list[Run] = []
    for url, start, stop in sorted(ranges):
        first, last = start // block_bytes, max(start, stop - 1) // block_bytes
        if runs and runs[-1][0] == url and first <= runs[-1][2] + 1:
            runs[-1] = (url, runs[-1][1], max(last, runs[-1][2]))
        else:
            runs.append((url, first, last))
    return runs
