"""Where a run will be seen."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from evaluation.wandb_session import ID_FILE, is_online


def dashboard(folder: Path, tracker: Any) -> str:
    """The run's page at W&B, where it will log there, and its report.

    Settles the run's id at W&B, which its address is of. WANDB_ENTITY is the first part of that address; without it, it
    is the user's own and known to W&B alone.
    """
    report = str(folder / "report.html")
    if not is_online(tracker.mode):
        return report
    file = folder / ID_FILE
    if not file.exists():
        file.write_text(secrets.token_hex(4))
    number, entity = file.read_text().strip(), os.environ.get("WANDB_ENTITY")
    if entity is None:
        return f"W&B project {tracker.project}, run {number}; {report}"
    return f"{os.environ.get('WANDB_BASE_URL', 'https://wandb.ai')}/{entity}/{tracker.project}/runs/{number}; {report}"
