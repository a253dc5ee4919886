"""Sessions of W&B's client: which say nothing of the machine, the command or the code, and name no credential."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from training.credentials import masked

ID_FILE = "wandb_run_id"
"""In a run folder: what W&B knows the run by."""


def is_online(mode: str) -> bool:
    """Whether tracker.mode means the service: 'auto' does where WANDB_API_KEY is set."""
    return mode == "online" or (mode == "auto" and bool(os.environ.get("WANDB_API_KEY")))


def begin(
    folder: Path,
    project: str,
    name: str,
    number: str,
    config: dict[str, Any],
    online: bool,
    resume: Literal["allow"] | None = "allow",
    resume_from: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
) -> Any:
    """The W&B run with this number, which is gone on with if it is there. Raises wandb.errors.Error.

    folder: what couldn't be sent is kept in its folder wandb/. config: credentials in it are masked. online: else
    nothing is sent. resume_from: "NUMBER?_step=STEP", in place of resume. group, job_type: what W&B sorts it by.
    """
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        x_disable_stats=True,
        # What it would add by itself: the command line, the code's remote address, the packages' list.
        x_disable_meta=True,
        disable_git=True,
        disable_code=True,
        x_save_requirements=False,
    )
    return wandb.init(
        project=project,
        name=name,
        id=number,
        resume=resume,
        resume_from=resume_from,
        group=group,
        job_type=job_type,
        dir=str(folder),
        config=masked(config),
        mode="online" if online else "offline",
        settings=settings,
    )
