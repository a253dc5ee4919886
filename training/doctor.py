"""`ldm doctor checkpoint=FOLDER` or `run=FOLDER`: checks every checksum of checkpoints, and lists what they hold."""

from __future__ import annotations

import math
from pathlib import Path

from omegaconf import DictConfig

from training import compose
from training.errors import ConfigurationError


def main() -> None:
    """Entry point of `ldm doctor` and `python -m training.doctor`; status 1 when something is damaged."""
    compose.command("doctor", run, (ConfigurationError,))


def run(config: DictConfig) -> None:
    """Examines what the configuration names. Raises ConfigurationError when it is no run or checkpoint."""
    if (config.run is None) == (config.checkpoint is None):
        raise ConfigurationError("run", config.run, "give either run=FOLDER or checkpoint=FOLDER")
    found = [examine(checkpoint) for checkpoint in chosen(config)]
    raise SystemExit(0 if True in found and False not in found else 1)


def chosen(config: DictConfig) -> list[Path]:
    """The folders to examine, newest first."""
    if config.checkpoint is not None:
        checkpoint = Path(config.checkpoint)
        if not checkpoint.is_dir():
            raise ConfigurationError("checkpoint", checkpoint, "no such folder; give one like RUN/checkpoints/step-...")
        return [checkpoint]
    found = sorted((Path(config.run) / "checkpoints").glob("step-*"), reverse=True)
    if not found:
        raise ConfigurationError("run", config.run, "no checkpoints below it; give the folder that `ldm train` made")
    return found


def examine(checkpoint: Path) -> bool | None:
    """Prints what a checkpoint holds and what is wrong with it; returns whether it is whole, None if it is none."""
    from training.checkpoint_files import DAMAGED, MANIFEST, CheckpointError, load_manifest, problems

    if (checkpoint / DAMAGED).exists():
        print(f"{checkpoint}: DAMAGED, and set aside by the run that went back to the one before")
        return False
    if not (checkpoint / MANIFEST).exists():
        print(f"{checkpoint}: no checkpoint, as it has no {MANIFEST}: being written, or left by a run that was killed")
        return None
    found = problems(checkpoint)
    print(f"{checkpoint}: {'DAMAGED' if found else 'whole'}")
    for problem in found:
        print(f"  {problem}")
    try:
        manifest = load_manifest(checkpoint)
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
        print(f"  {key}: {value}")
    for name, entry in manifest.files.items():
        print(f"  {name}: {entry.size:,} bytes, sha256 {entry.sha256}")
    size = sum(entry.size for entry in manifest.files.values())
    print(f"  together {size:,} bytes, {size / max(total, 1):.2f} for each element")
    return not found


if __name__ == "__main__":
    main()
