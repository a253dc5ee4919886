"""`ldm doctor RUN_FOLDER`: checks a run's checkpoints, every byte of them."""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    """Entry point of `ldm doctor` and `python -m training.doctor`; status 1 when a checkpoint is damaged."""
    parser = argparse.ArgumentParser(prog="ldm doctor", description="Checks every checksum of a run's checkpoints.")
    parser.add_argument("run", type=Path, help="run folder, for example runs/demo")
    raise SystemExit(check(parser.parse_args().run / "checkpoints"))


def check(folder: Path) -> int:
    """Prints step, ranks, size and verdict of each checkpoint; returns 1 when one is damaged or none is there."""
    from training.checkpoint_files import complete_checkpoints, load_manifest, problems

    status = 1
    for checkpoint in complete_checkpoints(folder):
        found = problems(checkpoint)
        if found:
            print(f"{checkpoint.name}: DAMAGED\n  " + "\n  ".join(found))
            return 1
        manifest = load_manifest(checkpoint)
        parameters = sum(len(engine.parameters) for engine in manifest.engines.values())
        size = sum(entry.size for entry in manifest.files.values())
        print(
            f"{checkpoint.name}: whole; {manifest.images_seen:,} images seen, {manifest.world} ranks, "
            f"{', '.join(manifest.engines)} with {parameters} parameters, {size / 1e6:.1f} MB"
        )
        status = 0
    if status:
        print(f"no complete checkpoint below {folder}")
    return status


if __name__ == "__main__":
    main()
