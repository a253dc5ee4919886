"""`ldm train replay=FILE`: computes a step again that a run could not make, on one process, and says what was wrong.

Nothing is written. Exit status: 0 all is finite now; 2 it is not, or a setting is wrong.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from training import compose
from training.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

    from training.distributed import Distributed
    from training.replay_file import ReplayFile
    from training.tasks import Task

MicroBatch = tuple[float, list[int]]
"""A loss, and the global numbers of its samples."""


def main() -> None:
    """Entry point of `ldm train replay=FILE` and `python -m training.replay`."""
    compose.command("replay", run, (ConfigurationError,), named_freely=("settings",))


def run(config: DictConfig) -> None:
    """Computes the step, prints what it found, and ends the process with the status."""
    from training.distributed import initialise, shut_down
    from training.job import exit_status, set_up_logging
    from training.replay_file import ReplayFile

    set_up_logging(is_main=True)
    path = Path(config.replay)
    file = ReplayFile.read(path)
    settings = settings_of(file, path, config.settings)
    ranks = initialise()
    try:
        told = replay(file, path.parent, settings, ranks)
    except Exception as error:
        if (status := exit_status(error)) is None:
            raise
        compose.fail(str(error), status)
    finally:
        shut_down()
    print("\n".join(told.lines()))
    raise SystemExit(0 if told.finite else 2)


def settings_of(file: ReplayFile, path: Path, changes: DictConfig) -> DictConfig:
    """The run's settings with `changes`. The run's folder is the one that the file lies in, wherever it was before.

    Raises ConfigurationError for a change of what isn't there.
    """
    settings = OmegaConf.create(file.settings)
    OmegaConf.set_struct(settings, True)
    try:
        merged = OmegaConf.merge(settings, changes)
    except OmegaConfBaseException as error:
        key = f"settings.{error.full_key}"
        raise ConfigurationError(key, None, "the run has no such setting; its config.yaml lists them") from None
    assert isinstance(merged, DictConfig)
    merged.run.folder = str(path.resolve().parents[2])
    return merged


class Told:
    """What came out of a step. micro_batches: in order; before: the same as the run had it, where it can be compared.

    error: what the engine had to say against the update; None: nothing. place: where the first wrong number came up.
    """

    def __init__(
        self,
        file: ReplayFile,
        micro_batches: Sequence[MicroBatch],
        error: str | None,
        place: str | None,
    ) -> None:
        self.file = file
        self.micro_batches = list(micro_batches)
        self.error = error
        self.place = place

    @property
    def finite(self) -> bool:
        """Whether the update could be made."""
        return self.error is None

    def lines(self) -> list[str]:
        """For a person to read."""
        before = self.file.in_order
        same = [numbers for _, numbers in before] == [numbers for _, numbers in self.micro_batches]
        lines = [f"step {self.file.step}, where the run had: {self.file.error}"]
        for place, (loss, numbers) in enumerate(self.micro_batches):
            turn, rank = divmod(place, len(self.file.micro_batches))
            had = f"; rank {rank}, micro-batch {turn} had {before[place][0]:.9g}" if same else ""
            lines.append(f"  loss {loss:.9g} of samples {', '.join(map(str, numbers))}{had}")
        lines.append(f"first that is infinite or not a number: {self.place or 'nothing'}")
        lines.append("the step's update could be made" if self.finite else f"the step can't be made: {self.error}")
        return lines


def replay(file: ReplayFile, folder: Path, settings: DictConfig, ranks: Distributed) -> Told:
    """Computes the step on this process alone, from the checkpoint in `folder`, and looks at every module.

    The micro-batches are those of all of the run's ranks, one after another, so their losses are too: bit for bit on
    the same machine. Modules aren't compiled, as compiled ones don't say what they give: losses of a run that compiles
    them agree to rounding. Raises ConfigurationError when the data gives other samples, or when a live run has the
    store that they lie in, and CheckpointError when the weights are gone.
    """
    import torch
    from hydra.utils import instantiate

    from data.stream import Storage
    from training.agreement import WatchedBatches
    from training.build import build_loader, build_task
    from training.checkpoint import Checkpoints
    from training.checkpoint_files import CheckpointError
    from training.checks import check_settings
    from training.dataset import store_of, training_sources
    from training.engine import NonFiniteUpdate
    from training.first_non_finite import FirstNonFinite
    from training.launch import hold_run_folder

    if ranks.world != 1:
        raise ConfigurationError("replay", folder, f"it takes one process, and there are {ranks.world}; start it alone")
    check_settings(settings, ranks.world)
    settings.engine.compile = None
    torch.set_num_threads(file.threads)
    with contextlib.ExitStack() as stack:
        if settings.data.embedded_store:
            stack.enter_context(hold_run_folder(Path(settings.run.folder)))
        stack.enter_context(store_of(settings))
        storage: Storage = instantiate(settings.data.storage)
        sources = training_sources(settings, storage)
        # Bad samples are noted in the folder that the loader is given: the run has noted them already.
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        loader = build_loader(OmegaConf.merge(settings, {"run": {"folder": scratch}}), sources, storage, ranks)  # type: ignore[arg-type]
        task = build_task(settings, ranks)
        manifest = Checkpoints(folder, ranks).restore_newest(task.engines)
        if manifest is None:
            raise CheckpointError(f"{folder} has no checkpoint: the weights of step {file.step} are gone")
        task.load_extra_state(manifest.extra)
        watched = WatchedBatches(stack.enter_context(contextlib.closing(loader.batches(file.batch))))
        learning_rate = instantiate(settings.learning_rate).at(file.step, settings.steps, settings.batch.global_size)
        watch = stack.enter_context(FirstNonFinite(parts_of(task)))
        error = None
        try:
            task.train_step(watched, file.step, learning_rate)
            losses = task.engines["model"].losses.tolist()
        except NonFiniteUpdate as failure:
            losses = failure.losses
            error = "its gradient is not finite" if failure.loss_is_finite else "a loss is not finite"
    found = sorted(itertools.chain(*watched.numbers))
    wanted = sorted(number for _, numbers in file.in_order for number in numbers)
    if found != wanted:
        raise ConfigurationError("replay", folder, f"the run had samples {wanted}, and these settings give {found}")
    return Told(file, list(zip(losses, watched.numbers, strict=True)), error, watch.found)


def parts_of(task: Task) -> dict[str, nn.Module]:
    """Every module that a task computes with, by a name: those that its engines train, and the others that it has."""
    from torch import nn

    trained = {name: engine.module for name, engine in task.engines.items()}
    others = {name: part for name, part in vars(task).items() if isinstance(part, nn.Module)}
    return trained | {name: part for name, part in others.items() if all(part is not t for t in trained.values())}


if __name__ == "__main__":
    main()
