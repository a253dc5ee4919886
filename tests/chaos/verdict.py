"""Whether a disturbed run ended as a calm one, and what it left behind."""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.chaos.supervisor import marked
from training.checkpoint_files import MANIFEST, Reader, complete_checkpoints, newest_complete, step_of
from training.checkpoint_store import CheckpointStore

SHARED_MEMORY = Path("/dev/shm")
GONE_SECONDS = 15.0
"""For processes to end after the command that they belong to."""


def differences(disturbed: Path, calm: Path, steps: int) -> list[str]:
    """What in the run's steps, losses and final state isn't bit for bit that of the calm run; empty when all is."""
    found = []
    logs = {folder: rows(folder) for folder in (disturbed, calm)}
    for folder, log in logs.items():
        if [row["step"] for row in log] != list(range(steps + 1)):
            found.append(f"{folder.name}: metrics.jsonl doesn't have each of the steps 0 to {steps} once")
        if bad := {key for row in log for key in row if key.startswith("data/bad/")}:
            found.append(f"{folder.name}: samples were replaced: {', '.join(sorted(bad))}")
    losses = [{row["step"]: row.get("train/loss") for row in log} for log in logs.values()]
    other = [step for step in sorted(losses[0].keys() & losses[1].keys()) if losses[0][step] != losses[1][step]]
    if other:
        found.append(f"the losses of {len(other)} steps differ, from step {other[0]} on")
    return found + different_states(disturbed, calm, steps)


def different_states(disturbed: Path, calm: Path, steps: int) -> list[str]:
    """The same of the last checkpoints: weights, moments, averages, images seen, and what the task keeps."""
    last = [newest_complete(folder / "checkpoints") for folder in (disturbed, calm)]
    if last[0] is None or last[1] is None:
        return ["a run has no whole checkpoint"]
    readers = [Reader(path) for path in last if path is not None]
    one, two = (reader.manifest for reader in readers)
    found = [
        f"{name} of the last checkpoints: {getattr(one, name)} and {getattr(two, name)}"
        for name in ("step", "images_seen", "extra", "kinds")
        if getattr(one, name) != getattr(two, name)
    ]
    if one.step != steps:
        found.append(f"the last checkpoint is of step {one.step}, not {steps}")
    for engine, entry in two.engines.items():
        if one.engines[engine].updates != entry.updates:
            found.append(f"{engine}: {one.engines[engine].updates} updates, not {entry.updates}")
        for kind in two.kinds:
            other = [
                name
                for name in entry.parameters
                if not torch.equal(*(reader.tensor(engine, kind, name) for reader in readers))
            ]
            if other:
                found.append(f"{kind} of {len(other)} parameters of {engine} differ, such as {other[0]}")
    return found


def problems_of_uploads(store: CheckpointStore, steps: int) -> list[str]:
    """What is wrong with the last checkpoint in the store, and what lies there that never became one."""
    contents = store.contents()
    complete = store.complete()
    if not complete or step_of(complete[0]) != steps:
        return [f"the newest checkpoint in the store is {complete[0] if complete else 'none'}, not of step {steps}"]
    torn = sorted(contents.keys() - complete)
    return store.problems(complete[0]) + [f"{store.place(name)}: a torn checkpoint" for name in torn]


def leftovers(run: Path, temporary: Path, since: float) -> list[str]:
    """Processes and files that the run should have taken along.

    temporary: where its temporary files were. since: when it began, in seconds since 1970.
    """
    deadline = time.monotonic() + GONE_SECONDS
    while (alive := marked(run)) and time.monotonic() < deadline:
        time.sleep(0.1)
    found = [f"process {process.pid}: {' '.join(process.cmdline())}" for process in alive]
    newest = next(complete_checkpoints(run / "checkpoints"), run)
    torn = [path for path in (run / "checkpoints").glob("step-*") if not (path / MANIFEST).exists()]
    found += [f"{path}: a torn checkpoint" for path in torn if path < newest]
    found += [str(path) for path in run.rglob("*") if re.search(r"\.(partial|part|tmp)$", path.name)]
    found += [str(path) for path in temporary.iterdir()]
    return found + [str(path) for path in SHARED_MEMORY.glob("torch_*") if _left(path, since)]


def _left(path: Path, since: float) -> bool:
    """Whether memory that processes of torch share is newer than that, and its maker is gone."""
    with contextlib.suppress(OSError, ValueError):
        return path.stat().st_mtime > since and not psutil.pid_exists(int(path.name.split("_")[1]))
    return False


def rows(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
