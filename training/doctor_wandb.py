"""`ldm doctor wandb`: what runs left for Weights & Biases, and a workspace there with the charts of `ldm report`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from evaluation.run_metrics import METRICS
from training import compose
from training.wandb_offline import is_synced, offline_folders, secrets
from training.wandb_workspace import Service, ServiceError, logged_metrics, write_workspace


def main() -> None:
    """Entry point of `ldm doctor wandb`; status 1 when a secret was found."""
    compose.command("doctor_wandb", run, (ServiceError,))


def run(config: DictConfig) -> None:
    """Prints what it finds. Raises ServiceError when W&B is to be asked, and refuses or can't be reached."""
    import wandb

    key = os.environ.get("WANDB_API_KEY")
    address = os.environ.get("WANDB_BASE_URL") or str(wandb.Settings().base_url)
    mode = "online, as WANDB_API_KEY is set" if key else "offline, as WANDB_API_KEY is not set"
    print(f"wandb {wandb.__version__}, service {address}; tracker.mode=auto is {mode}")
    folders = run_folders(Path(config.runs))
    found = [problem for folder in folders for problem in examine(folder, os.environ)]
    if not folders:
        print(f"{config.runs}: no run folders in it; give runs=FOLDER, where `ldm train` made them")
    if key:
        entity = config.entity or os.environ.get("WANDB_ENTITY")
        metrics = logged_metrics(folders)
        print(f"workspace: {write_workspace(Service(address, key), entity, config.project, metrics)}")
    else:
        print(
            f"workspace: it needs a key. Get one from {address.replace('//api.', '//')}/authorize, then: "
            f"export WANDB_API_KEY=...; ldm doctor wandb project={config.project}. "
            "Without one, `ldm report run=FOLDER` makes the same charts as a file"
        )
    raise SystemExit(1 if found else 0)


def run_folders(runs: Path) -> list[Path]:
    """The folder itself if it is a run's, else those of runs in it."""
    candidates = [runs, *sorted(path for path in runs.glob("*") if path.is_dir())]
    found = [path for path in candidates if (path / METRICS).exists() or (path / "wandb").is_dir()]
    return found[:1] if found[:1] == [runs] else found


def examine(folder: Path, environment: Mapping[str, str]) -> list[str]:
    """Prints how a run stands with W&B, and returns what secrets its files hold, without their values."""
    offline = offline_folders(folder)
    waiting = [path for path in offline if not is_synced(path)]
    if waiting:
        print(f"{folder}: {len(waiting)} of {len(offline)} offline parts are not at W&B yet; send them together:")
        print(f"  wandb sync {shlex.join(map(str, waiting))}")
    else:
        parts = "all offline parts are marked as sent" if offline else "nothing was logged offline"
        print(f"{folder}: {parts}")
    found = [problem for path in offline for problem in secrets(path, environment)]
    for problem in found:
        print(f"  SECRET: {problem}; remove that folder, change the secret, and give it by the environment alone")
    return found


if __name__ == "__main__":
    main()
