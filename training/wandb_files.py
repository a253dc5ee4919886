"""What the W&B client writes when it is offline: wandb/offline-run-<time>-<id>/ with a .wandb file of records."""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evaluation.run_record import secret_keys

BLOCK_BYTES = 32768
HEADER = b":W&B\xe1\xbe"  # and a byte of the version
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
SECRET_VARIABLE = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL", re.IGNORECASE)
SHORTEST_SECRET = 8
"""Shorter values of environment variables are words that may stand anywhere."""


def offline_folders(run_folder: Path) -> list[Path]:
    """Those of a run, one for each start, the oldest first."""
    return sorted((run_folder / "wandb").glob("offline-run-*"))


def is_synced(offline_folder: Path) -> bool:
    """Whether `wandb sync` marked it as sent."""
    return any(offline_folder.glob("*.wandb.synced"))


def records(data: bytes) -> Iterator[bytes]:
    """The serialised records of a .wandb file, as far as it was written whole.

    The format is LevelDB's log: blocks of 32 KiB, in them fragments of a checksum, length, kind and data.
    Raises ValueError when it is no such file or damaged.
    """
    if not data.startswith(HEADER):
        raise ValueError("it has not the header of a .wandb file")
    at, record = len(HEADER) + 1, b""
    while at + 7 <= len(data):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        checksum, length, kind = struct.unpack_from("<IHB", data, at)
        if left < 7 or kind == 0:  # padding
            at += left
            continue
        fragment = data[at + 7 : at + 7 + length]
        if len(fragment) < length:  # its writer was killed
            return
        if checksum != zlib.crc32(data[at + 6 : at + 7 + length]):
            raise ValueError(f"the record at byte {at} has not its checksum")
        at += 7 + length
        record = fragment if kind in (FULL, FIRST) else record + fragment
        if kind in (FULL, LAST):
            yield record


def secrets(offline_folder: Path, environment: Mapping[str, str]) -> list[str]:
    """Where secrets are in the folder's files: settings named like one, and values of environment variables so named.

    Tells files and names, never values.
    """
    variables = {
        name: value.encode()
        for name, value in environment.items()
        if SECRET_VARIABLE.search(name) and len(value) >= SHORTEST_SECRET
    }
    found = []
    for path in sorted(path for path in offline_folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        parts = [content]
        if path.suffix == ".wandb":
            try:
                parts = list(records(content))
            except ValueError as error:
                found.append(f"{path} can't be searched, {error}")
            found += [f"{path}: setting {key}" for key in sorted(set(secret_keys(_config(parts))))]
        for name, value in variables.items():
            if any(value in part for part in parts):
                found.append(f"{path}: the value of ${name}")
    return found


def _config(serialised: list[bytes]) -> dict[str, Any]:
    """The configuration that records hold, later ones over earlier ones."""
    from wandb.proto import wandb_internal_pb2

    config: dict[str, Any] = {}
    for data in serialised:
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        record.ParseFromString(data)
        for change in (*record.run.config.update, *record.config.update):
            config[change.key or ".".join(change.nested_key)] = json.loads(change.value_json)
    return config
