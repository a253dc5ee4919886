"""What W&B's client has written of a run where it could send nothing: its .wandb files, which it can't read itself.

A file is a header of seven bytes and then LevelDB's log format: blocks of 32 KiB, within them records of CRC (4 bytes),
length (2), kind (1: whole, 2: first part, 3: middle, 4: last) and content, which is a protobuf message.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

BLOCK_BYTES = 32768
HEADER = b":W&B\xe1\xbe"  # and a byte of the version
TAIL_BLOCKS = 32
"""Enough to hold a row nearly always; twice as many are read until there is one."""
_RECORD = struct.Struct("<IHB")
_WHOLE, _FIRST, _LAST = 1, 2, 4


def last_step(folder: Path, run_id: str) -> int:
    """The last step of a run that is in any of its offline files below `folder`; -1 where there is none.

    Cuts off what a killed client left half written at their ends: `wandb sync` would stop there, and leave out what
    later starts of the run wrote.
    """
    found = -1
    for path in folder.glob(f"offline-run-*/run-{run_id}.wandb"):
        step, whole_bytes = _end(path)
        found = max(found, step)
        if whole_bytes == 0:
            path.unlink()
        elif whole_bytes < path.stat().st_size:
            os.truncate(path, whole_bytes)
    return found


def _end(path: Path) -> tuple[int, int]:
    """The last step of a file, -1 for none; and where its last whole message ends, 0 for none."""
    from wandb.proto import wandb_internal_pb2

    blocks = -(-path.stat().st_size // BLOCK_BYTES)
    wanted = TAIL_BLOCKS
    while True:
        first = max(0, blocks - wanted)
        with path.open("rb") as file:
            file.seek(first * BLOCK_BYTES)
            data = file.read()
        step, end = -1, 0
        with suppress(ValueError):  # what comes after a damaged message is lost to `wandb sync` too
            for content, after in messages(data, at_start=first == 0):
                end = first * BLOCK_BYTES + after
                record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
                record.ParseFromString(content)
                if record.WhichOneof("record_type") == "history":
                    step = max(step, record.history.step.num)
        if step >= 0 or first == 0:
            return step, end
        wanted *= 2


def messages(data: bytes, at_start: bool) -> Iterator[tuple[bytes, int]]:
    """The whole messages in the blocks `data`, which are a file's first ones or not, and where in it each one ends.

    Raises ValueError when it is no such file or damaged; one whose writer was killed just ends.
    """
    if at_start and not data.startswith(HEADER):
        raise ValueError("it has not the header of a .wandb file")
    at = len(HEADER) + 1 if at_start else 0
    parts: list[bytes] | None = None
    while at + _RECORD.size <= len(data):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < _RECORD.size:
            at += left
            continue
        checksum, length, kind = _RECORD.unpack_from(data, at)
        if kind == 0:  # the rest of the block is empty
            at += left
            continue
        content = data[at + _RECORD.size : at + _RECORD.size + length]
        if len(content) < length:  # torn
            return
        if checksum != zlib.crc32(data[at + 6 : at + _RECORD.size + length]):
            raise ValueError(f"the record at byte {at} has not its checksum")
        at += _RECORD.size + length
        if kind in (_WHOLE, _FIRST):
            parts = []
        if parts is None:  # the message began before `data`
            continue
        parts.append(content)
        if kind in (_WHOLE, _LAST):
            yield b"".join(parts), at
            parts = None
