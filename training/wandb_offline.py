"""The folders that W&B's client writes when it is offline, wandb/offline-run-<time>-<id>/: sent or not, and secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.credentials import credentials_in
from training.wandb_file import messages

SECRET_VARIABLE = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL", re.IGNORECASE)
SHORTEST_SECRET = 8
"""Shorter values of environment variables are words that may stand anywhere."""


def offline_folders(run_folder: Path) -> list[Path]:
    """Those of a run, one for each start, the oldest first."""
    return sorted((run_folder / "wandb").glob("offline-run-*"))


def is_synced(offline_folder: Path) -> bool:
    """Whether `wandb sync` marked it as sent."""
    return any(offline_folder.glob("*.wandb.synced"))


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
                parts = [part for part, _ in messages(content, at_start=True)]
            except ValueError as error:
                found.append(f"{path} can't be searched, {error}")
            found += [f"{path}: setting {key}" for key in sorted({key for key, _ in credentials_in(_config(parts))})]
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
