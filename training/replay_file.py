"""What a step leaves that could not be made: RUN/replays/step-00000042/, for `ldm train replay=FILE`.

In it lie `replay.json`, which says what the step's ranks computed on, and an ordinary checkpoint of the weights that
they computed with. These are still whole when a step fails, as it fails before its update; the newest checkpoint of the
run is of an earlier step.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from training.checkpoint import Checkpoints
from training.checkpoint_files import CheckpointNotWritten, folder_name
from training.distributed import Distributed
from training.errors import ConfigurationError
from training.non_finite import NonFiniteStep
from training.tasks import Task
from training.train_state import TrainState

log = logging.getLogger(__name__)

REPLAYS = "replays"
FILE = "replay.json"
FORMAT = 1


@dataclass(frozen=True)
class ReplayFile:
    """A step that could not be made, on the samples of a batch (TrainState.batch).

    error: what was said of it. micro_batches: of each rank in turn, each with its loss and its global sample numbers.
    threads: that each rank computed with. settings: the run's, composed.
    """

    step: int
    batch: int
    error: str
    micro_batches: list[list[tuple[float, list[int]]]]
    threads: int
    settings: dict[str, Any]

    @property
    def in_order(self) -> list[tuple[float, list[int]]]:
        """The micro-batches as one rank alone takes them: the first of every rank, then the second of every rank."""
        return [micro_batch for turn in zip(*self.micro_batches, strict=True) for micro_batch in turn]

    def to_json(self) -> str:
        """As text. A loss that JSON has no number for is a word: nan, inf or -inf."""
        ranks = [
            [{"loss": loss if abs(loss) < float("inf") else str(loss), "samples": numbers} for loss, numbers in rank]
            for rank in self.micro_batches
        ]
        return json.dumps({"format": FORMAT, **asdict(self), "micro_batches": ranks}, indent=1, allow_nan=False)

    @staticmethod
    def read(path: Path) -> ReplayFile:
        """Reads `to_json`'s text. Raises ConfigurationError when it isn't there, or is something else."""
        try:
            raw = json.loads(path.read_text())
            if raw.pop("format") != FORMAT:
                raise ValueError("it is of another format")
            ranks = [[(float(m["loss"]), list(m["samples"])) for m in rank] for rank in raw.pop("micro_batches")]
            return ReplayFile(micro_batches=ranks, **raw)
        except OSError as error:
            remedy = f"can't be read ({error.strerror}); give a run's replays/step-.../{FILE}"
            raise ConfigurationError("replay", path, remedy) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = f"it is no replay file ({error}); give a run's replays/step-.../{FILE}"
            raise ConfigurationError("replay", path, remedy) from None


def leave_replay(
    folder: Path, config: DictConfig, task: Task, state: TrainState, failure: NonFiniteStep, ranks: Distributed
) -> NonFiniteStep:
    """Writes what `ldm train replay=FILE` needs into the run folder, and returns the failure with that command in it.

    A collective. A failure that left one of several engines updated is returned as it is, for the weights that it was
    computed with are gone; so is one that the disk has no room for.
    """
    if not failure.untouched:
        return failure
    target = folder / REPLAYS / folder_name(failure.step)
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    told = ReplayFile(failure.step, state.batch, str(failure), failure.micro_batches, torch.get_num_threads(), settings)  # type: ignore[arg-type]

    def write() -> None:
        (target / FILE).write_text(told.to_json() + "\n")

    checkpoints = Checkpoints(target, ranks)
    try:
        checkpoints.save(task.engines, failure.step, state.images_seen, state.kept(task), write)
        checkpoints.finish()
    except CheckpointNotWritten as error:
        if ranks.is_main:
            log.warning("no replay file: %s", error)
        return failure
    return failure.with_remedy(f"`ldm train replay={target / FILE}` computes it again")
