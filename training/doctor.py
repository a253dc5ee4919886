"""`ldm doctor checkpoint=FOLDER` or `run=FOLDER`: checks every checksum of checkpoints, and lists what they hold.

Either may be the URL of one that was uploaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from training import compose
from training.errors import ConfigurationError

if TYPE_CHECKING:
    from training.checkpoint_files import Manifest

LONGEST_LIST, LONGEST_TEXT = 4, 80
"""Of what is shown entry by entry, and as it is."""


def main() -> None:
    """Entry point of `ldm doctor` and `python -m training.doctor`; status 1 when something is damaged."""
    compose.command("doctor", run, (ConfigurationError,))


def run(config: DictConfig) -> None:
    """Examines what the configuration names. Raises ConfigurationError when it is no run or checkpoint."""
    if (config.run is None) == (config.checkpoint is None):
        raise ConfigurationError("run", config.run, "give either run=FOLDER or checkpoint=FOLDER")
    found = [examine(place) for place in chosen(config)]
    raise SystemExit(0 if True in found and False not in found else 1)


@dataclass(frozen=True)
class Place:
    """A folder that may be a checkpoint, on a disk or in a store. files: names of those in it."""

    name: str
    files: set[str]
    manifest: Callable[[], Manifest]
    problems: Callable[[], list[str]]


def chosen(config: DictConfig) -> list[Place]:
    """The folders to examine, newest first."""
    key = "run" if config.checkpoint is None else "checkpoint"
    given = str(config[key])
    if "://" in given:
        return _of_store(key, given)
    if key == "checkpoint":
        if not Path(given).is_dir():
            raise ConfigurationError("checkpoint", given, "no such folder; give one like RUN/checkpoints/step-...")
        return [_of_disk(Path(given))]
    found = sorted((Path(given) / "checkpoints").glob("step-*"), reverse=True)
    if not found:
        raise ConfigurationError("run", given, "no checkpoints below it; give the folder that `ldm train` made")
    return [_of_disk(path) for path in found]


def _of_disk(folder: Path) -> Place:
    from training.checkpoint_files import load_manifest, problems

    files = {path.name for path in folder.iterdir()}
    return Place(str(folder), files, partial(load_manifest, folder), partial(problems, folder))


def _of_store(key: str, url: str) -> list[Place]:
    """Those of a run in a store, or one of them."""
    from data.errors import DataError
    from data.transfer import Transfers
    from training.checkpoint_store import CheckpointStore, run_and_checkpoint

    run, name = run_and_checkpoint(url)
    store = CheckpointStore(run, Transfers())
    try:
        store.storage.check_writable_place(run)  # tells within seconds what is wrong
        contents = store.contents()
    except DataError as error:
        raise ConfigurationError(key, url, str(error)) from None
    names = sorted(contents, reverse=True) if name is None else [name] if name in contents else []
    if not names or (key == "checkpoint") != (name is not None):
        remedy = "no checkpoint is there; give checkpoint=RUN/checkpoints/step-..., or run=, what checkpoint.upload was"
        raise ConfigurationError(key, url, remedy)
    return [Place(store.place(n), contents[n], partial(store.manifest, n), partial(store.problems, n)) for n in names]


def examine(place: Place) -> bool | None:
    """Prints what a checkpoint holds and what is wrong with it; returns whether it is whole, None if it is none."""
    from training.checkpoint_files import DAMAGED, MANIFEST, CheckpointError

    if DAMAGED in place.files:
        print(f"{place.name}: DAMAGED, and set aside by the run that went back to the one before")
        return False
    if MANIFEST not in place.files:
        print(f"{place.name}: no checkpoint, as it has no {MANIFEST}: being written, or left by a run that was killed")
        return None
    found = place.problems()
    print(f"{place.name}: {'DAMAGED' if found else 'whole'}")
    for problem in found:
        print(f"  {problem}")
    try:
        manifest = place.manifest()
    except CheckpointError:
        return False
    print(f"  step {manifest.step:,}, {manifest.images_seen:,} images seen, saved by {manifest.world} ranks")
    total = 0
    for name, engine in manifest.engines.items():
        elements = sum(math.prod(entry.shape) for entry in engine.parameters.values())
        total += elements
        print(
            f"  {name}: {elements:,} elements in {len(engine.parameters):,} parameters after {engine.updates:,} "
            f"updates; of each {', '.join(manifest.kinds)} in float32"
        )
    for key, value in manifest.extra.items():
        print(f"  {key}: {in_short(value)}")
    for name, entry in manifest.files.items():
        print(f"  {name}: {entry.size:,} bytes, sha256 {entry.sha256}")
    size = sum(entry.size for entry in manifest.files.values())
    print(f"  together {size:,} bytes, {size / max(total, 1):.2f} for each element")
    return not found


def in_short(value: Any) -> str:
    """One line of a number or of what is nested; of long lists, such as the updates that a spike is judged by, their
    length and the last entry; of long texts, such as the used entries of a codebook, their length."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {in_short(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list) and len(value) > LONGEST_LIST:
        return f"{len(value):,} entries, the last ({in_short(value[-1])})"
    if isinstance(value, list):
        return f"[{'; '.join(in_short(part) for part in value)}]"
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return f"{len(value):,} characters"
    return f"{value:.9g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
