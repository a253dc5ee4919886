"""A run whose checkpoints were uploaded, brought here for as long as its model is read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evaluation.errors import EvaluationError


def folder_beside(run: str | None) -> Path:
    """Where what is made of a run goes by default: into its folder; into this one for a run in a store, or none."""
    return Path() if run is None or is_url(run) else Path(run)


def is_url(place: str) -> bool:
    """Whether it names a place in a store, and no path."""
    return "://" in place


@contextmanager
def run_here(run: str) -> Iterator[Path]:
    """The folder of a run, or of one of its checkpoints.

    Of one at a URL the newest whole checkpoint, or the one that is named, is brought to a temporary folder. The store's
    address and keys come from the environment or an AWS profile. Raises EvaluationError when there is none.
    """
    if not is_url(run):
        yield Path(run)
        return
    from data.errors import DataError
    from data.transfer import Transfers
    from training.checkpoint_files import CheckpointError
    from training.checkpoint_store import CHECKPOINTS, CONFIG, CheckpointStore, run_and_checkpoint

    url, wanted = run_and_checkpoint(run)
    store = CheckpointStore(url, Transfers())
    with tempfile.TemporaryDirectory(prefix="ldm-run-") as temporary:
        folder = Path(temporary)
        checkpoints, told = folder / CHECKPOINTS, []
        try:
            store.storage.check_writable_place(url)  # tells within seconds what is wrong
            store.fetch_run_files(folder, (CONFIG,))
            for name in store.complete() if wanted is None else [wanted]:
                if not (found := store.fetch(name, checkpoints / name)):
                    break
                told += found
            else:
                raise EvaluationError(f"run={run}: no whole checkpoint is there{': ' * bool(told)}{'; '.join(told)}")
        except (DataError, CheckpointError, OSError) as error:
            raise EvaluationError(f"run={run}: {error}") from error
        yield folder if wanted is None else checkpoints / name
