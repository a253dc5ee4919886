"""What W&B's client has written of a run where it could send nothing: its .wandb files, which it can't read itself.

A file is a header of seven bytes and then LevelDB's log format: blocks of 32 KiB, within them records of CRC (4 bytes),
length (2), kind (1: whole, 2: first part, 3: middle, 4: last) and content, which is a protobuf message.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

BLOCK_BYTES = 32768
HEADER_BYTES = 7
TAIL_BLOCKS = 32
"""Enough to hold a row nearly always; twice as many are read until there is one."""
_RECORD = struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def last_step(folder: Path, run_id: str) -> int:
    """The last step of a run that is in any of its offline files below `folder`; -1 where there is none.

    What a killed client hadn't written yet is not counted.
    """
    return max((_last_step(path) for path in folder.glob(f"offline-run-*/run-{run_id}.wandb")), default=-1)


def _last_step(path: Path) -> int:
    from wandb.proto import wandb_internal_pb2

    blocks = -(-path.stat().st_size // BLOCK_BYTES)
    wanted = TAIL_BLOCKS
    while True:
        first = max(0, blocks - wanted)
        with path.open("rb") as file:
            file.seek(first * BLOCK_BYTES)
            data = file.read()
        step = -1
        for content in messages(data, at_start=first == 0):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            if record.WhichOneof("record_type") == "history":
                step = max(step, record.history.step.num)
        if step >= 0 or first == 0:
            return step
        wanted *= 2


def messages(data: bytes, at_start: bool) -> Iterator[bytes]:
    """The whole messages in the blocks `data`, which are a file's first ones or not; without one that was torn."""
    at = HEADER_BYTES if at_start else 0
    parts: list[bytes] | None = None
    while at + _RECORD.size <= len(data):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < _RECORD.size:
            at += left
            continue
        _, length, kind = _RECORD.unpack_from(data, at)
        if kind == 0:  # the rest of the block is empty
            at += left
            continue
        content = data[at + _RECORD.size : at + _RECORD.size + length]
        at += _RECORD.size + length
        if len(content) < length:
            return
        if kind in (_WHOLE, _FIRST):
            parts = []
        if parts is None:  # the message began before `data`
            continue
        parts.append(content)
        if kind in (_WHOLE, _LAST):
            yield b"".join(parts)
            parts = None
