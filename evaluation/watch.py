"""Measuring a run while it trains: whenever there is another checkpoint, up to that of its last step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from evaluation.errors import EvaluationError
from evaluation.protocol import Protocol
from evaluation.results import read_results
from evaluation.run import read_config
from training.checkpoint_files import newest_readable, step_of
from training.distributed import Distributed

log = logging.getLogger(__name__)


def watch(config: DictConfig, protocol: Protocol, ranks: Distributed, measure: Callable[[Path], None]) -> None:
    """Calls `measure` with the newest checkpoint of config.run whenever that has no result by this protocol yet.

    Returns after the checkpoint of the run's last step; those that were replaced by newer ones meanwhile are left out.
    The run needn't have begun. Raises EvaluationError when no other checkpoint has come for
    config.watch_patience_hours.
    """
    if protocol.draws == "reconstructions":
        raise EvaluationError("watch=true: a first stage is measured when its run is finished; set it to false")
    folder = Path(config.run)
    began = time.monotonic()
    before: Path | None = None
    while True:
        newest: Path | None = ranks.broadcast_object(_newest(folder) if ranks.is_main else None)
        if newest is not None and newest != before:
            if not ranks.broadcast_object(_is_measured(folder, step_of(newest), protocol)):
                measure(newest)
            before, began = newest, time.monotonic()
        if before is not None and step_of(before) >= read_config(folder).steps:
            return
        if time.monotonic() - began > 3600 * config.watch_patience_hours:
            raise EvaluationError(
                f"run={folder}: no other checkpoint has come for watch_patience_hours={config.watch_patience_hours}; "
                f"the newest is {before}"
            )
        time.sleep(config.watch_every_seconds)


def _newest(folder: Path) -> Path | None:
    found = newest_readable(folder / "checkpoints")
    return None if found is None else found[0]


def _is_measured(folder: Path, step: int, protocol: Protocol) -> bool:
    return any((result.step, result.protocol_hash) == (step, protocol.hash) for result in read_results(folder))
