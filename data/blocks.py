"""Blocks of objects in bounded memory, the least recently used leaving first."""

import threading
from collections import OrderedDict

Key = tuple[str, int]  # URL, number of the block


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

    def forget(self, url: str) -> None:
        """Drop every block of `url`."""
        with self._lock:
            for key in [key for key in self._blocks if key[0] == url]:
                self.held_bytes -= len(self._blocks.pop(key))
