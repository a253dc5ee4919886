"""The endless stream of a rank's micro-batches; it can start at any step."""

import atexit
import json
import logging
import signal
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader

from data.batch import Batch
from data.errors import DataError
from data.inputs import Input
from data.mixture import IndexedSource, Mixture
from data.samples import Samples
from data.stream import Storage
from data.transforms import DEFAULT_MAX_PIXELS

log = logging.getLogger(__name__)
_JUDGED_SAMPLES = 64  # the share of bad samples means nothing before
_LOGGED_FAULTS = 5  # of each reason


class Loader:
    """Micro-batches of one rank.

    The samples of optimizer step s are the global sample numbers [s * G, (s + 1) * G), G = `global_batch`;
    micro-batch a of rank r holds the numbers s * G + (a * world + r) * micro_batch + i. Which sample stands
    at a number is the business of `data.mixture` and `data.order`; everything random about it is keyed by
    (seed, number). So what a step trains on does not depend on ranks, workers, or where the run was resumed.

    sources, storage: what to read, and how. seed: 0 or more. image_size: side of the square images in pixels.
    inputs: what is read for the model's conditioners, by name. workers: processes that load ahead; 0 loads in this one.
    scaled_side: pixels that a picture's shorter side is scaled to before a square of image_size is cut out of it, at a
    random place; None: image_size, and the middle is taken. flip: mirror half of the images. smallest_side: smaller
    pictures (in pixels) are bad samples.
    max_bad_share: of the samples seen by this loader; above it loading ends in a DataError.
    group_shards, jitter_samples: see `data.order.Order`. max_pixels: larger pictures are bad samples.
    replace_bad_shards: samples of shards that are gone or changed since they were indexed are bad samples; False: they
    end loading in a DataError.
    quarantine: a file to which every bad sample is added, one JSON object a line.
    pin_memory: put batches into page-locked memory, for copies to a GPU. batches_ahead: of each worker.

    Raises DataError when the batch arithmetic does not come out.
    """

    def __init__(
        self,
        sources: Sequence[IndexedSource],
        storage: Storage,
        seed: int,
        image_size: int,
        inputs: Mapping[str, Input],
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        scaled_side: int | None = None,
        flip: bool = False,
        smallest_side: int = 1,
        max_bad_share: float = 0.1,
        group_shards: int = 64,
        jitter_samples: int = 4096,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        replace_bad_shards: bool = True,
        quarantine: Path | None = None,
        pin_memory: bool = False,
        batches_ahead: int = 2,
    ) -> None:
        if micro_batch < 1 or world < 1 or not 0 <= rank < world:
            raise DataError(f"micro_batch={micro_batch} and world={world} must be at least 1, rank={rank} below world")
        if global_batch < 1 or global_batch % (micro_batch * world):
            raise DataError(
                f"global_batch={global_batch} is no multiple of micro_batch x world = {micro_batch} x {world}"
            )
        if not 0 <= max_bad_share <= 1:
            raise DataError(f"max_bad_share={max_bad_share} must lie in [0, 1]")
        self.global_batch = global_batch
        self.micro_batch = micro_batch
        self.rank = rank
        self.world = world
        self.workers = workers
        self.max_bad_share = max_bad_share
        self.quarantine = quarantine
        self.pin_memory = pin_memory
        self.batches_ahead = batches_ahead
        self.mixture = Mixture(sources, seed, group_shards, jitter_samples)
        side = image_size if scaled_side is None else scaled_side
        if side < image_size:
            raise DataError(f"scaled_side={side} must be at least image_size={image_size}")
        self._samples = Samples(
            self.mixture,
            storage,
            seed,
            image_size,
            inputs,
            side,
            flip,
            smallest_side,
            max_pixels,
            replace_bad_shards,
        )

    @property
    def accumulation(self) -> int:
        """Micro-batches of each rank in one optimizer step."""
        return self.global_batch // (self.micro_batch * self.world)

    def numbers(self, start_step: int) -> Iterator[list[int]]:
        """The global sample numbers of each micro-batch of this rank, from `start_step` on, without end."""
        micro_batch = start_step * self.accumulation
        while True:
            first = (micro_batch * self.world + self.rank) * self.micro_batch
            yield list(range(first, first + self.micro_batch))
            micro_batch += 1

    def account(self, number: int) -> dict[str, float]:
        """Metrics of the global sample numbers below `number`: epochs, and samples, of each source if it has a name."""
        metrics: dict[str, float] = {}
        for source, seen in zip(self.mixture.sources, self.mixture.seen(number), strict=True):
            mark = f"/{source.name}" if source.name else ""
            metrics[f"data/epoch{mark}"] = seen / len(source.index)
            if mark:
                metrics[f"data/samples{mark}"] = seen
        return metrics

    def step(self, number: int) -> Batch:
        """The whole global batch of optimizer step `number`, the same on every rank."""
        first = number * self.global_batch
        batch = self._samples.__getitems__(range(first, first + self.global_batch))
        if isinstance(batch, Exception):
            raise batch
        return batch

    def batches(self, start_step: int = 0) -> Generator[Batch, None, None]:
        """Endless micro-batches, `accumulation` of them for each optimizer step.

        Close the generator to end its workers. Raises DataError when too many samples are bad, or when the
        store fails for good.
        """
        loader: DataLoader[Any] = DataLoader(
            self._samples,
            batch_sampler=_Numbers(self, start_step),
            num_workers=self.workers,
            collate_fn=_same,
            pin_memory=self.pin_memory,
            prefetch_factor=self.batches_ahead if self.workers else None,
            worker_init_fn=_prepare_worker,
            # its own generator: DataLoader would draw from torch's global one, and change the run's noise
            generator=torch.Generator().manual_seed(0),
        )
        running = [iter(loader)]  # the only reference: its workers end when it goes
        # workers ignore the signal that multiprocessing ends its children with: they must be told before
        atexit.register(running.clear)
        bad: Counter[str] = Counter()
        seen = 0
        try:
            while True:
                batch = next(running[0])
                if isinstance(batch, Exception):
                    raise batch
                seen += len(batch)
                self._judge(batch, bad, seen)
                yield batch
        finally:
            atexit.unregister(running.clear)
            running.clear()

    def _judge(self, batch: Batch, bad: Counter[str], seen: int) -> None:
        if batch.faults and self.quarantine is not None:
            self.quarantine.parent.mkdir(parents=True, exist_ok=True)
            with self.quarantine.open("a") as file:
                file.writelines(json.dumps(asdict(fault)) + "\n" for fault in batch.faults)
        for fault in batch.faults:
            bad[fault.reason] += 1
            if bad[fault.reason] <= _LOGGED_FAULTS:
                last = "; further ones are counted only" if bad[fault.reason] == _LOGGED_FAULTS else ""
                log.warning("bad sample (%s): %s in %s, replaced%s", fault.reason, fault.key, fault.url, last)
        total = sum(bad.values())
        if seen >= _JUDGED_SAMPLES and total > self.max_bad_share * seen:
            last_fault = batch.faults[-1] if batch.faults else "in an earlier batch"
            raise DataError(
                f"{total} of {seen} samples are bad ({dict(bad)}), above max_bad_share={self.max_bad_share}; "
                f"the last: {last_fault}. Mend the shards or raise the limit"
            )


class _Numbers:
    """The batch sampler: lists of global sample numbers."""

    def __init__(self, loader: Loader, start_step: int) -> None:
        self.loader = loader
        self.start_step = start_step

    def __iter__(self) -> Iterator[list[int]]:
        return self.loader.numbers(self.start_step)


def _same(batch: Any) -> Any:
    return batch


def _prepare_worker(worker: int) -> None:
    """A scheduler signals every process of a job; only the training process may decide what follows."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _tell_unless_abandoned


def _tell_unless_abandoned(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Of an error in a worker's own threads, unless the training process was killed while it took a batch over."""
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)
