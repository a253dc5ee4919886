"""The endless stream of a rank's micro-batches; it can start at any step."""

import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from data.bad_samples import BadSamples
from data.batch import Batch
from data.bucketing import Bucketed
from data.buckets import Buckets
from data.errors import DataError
from data.handover import Receiver, Slots
from data.inputs import Input
from data.latents import MomentsReader
from data.members import MemberReader
from data.mixture import IndexedSource, Mixture
from data.pictures import ImageReader, PictureReader
from data.samples import Samples
from data.stream import Storage
from data.transforms import DEFAULT_MAX_PIXELS
from data.workers import loaded


class Loader:
    """Micro-batches of one rank.

    The samples of optimizer step s are the global sample numbers [s * G, (s + 1) * G), G = `global_batch`;
    micro-batch a of rank r holds the numbers s * G + (a * world + r) * micro_batch + i. Which sample stands
    at a number is the business of `data.mixture` and `data.order`; everything random about it is keyed by
    (seed, number). So what a step trains on does not depend on ranks, workers, or where the run was resumed. With
    `buckets`, the pictures of a step all have one of their sizes: see `data.bucketing`.

    sources, storage: what to read, and how. seed: 0 or more. image_size: side of the square images in pixels.
    inputs: what is read for the model's conditioners, by name. workers: processes that load ahead; 0 loads in this one.
    scaled_side: pixels that a picture's shorter side is scaled to before a square of image_size is cut out of it, at a
    random place; None: image_size, and the middle is taken. flip: mirror half of the images. smallest_side: smaller
    pictures (in pixels) are bad samples.
    max_bad_share: of the samples seen by this loader; above it loading ends in a DataError.
    group_shards, jitter_samples: see `data.order.Order`. max_pixels: larger pictures are bad samples.
    reducing_gap: see `data.pictures.ImageReader`.
    replace_bad_shards: samples of shards that are gone or changed since they were indexed are bad samples; False: they
    end loading in a DataError.
    quarantine: a file to which every bad sample is added, one JSON object a line.
    pin_memory: put batches into page-locked memory, for copies to a GPU. batches_ahead: of each worker.
    latents: the shards hold the moments of images of image_size (data.latents) instead of pictures. buckets: of
    image_size, that the sources' indices are sorted into; None: all pictures are squares.

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
        reducing_gap: float | None = None,
        replace_bad_shards: bool = True,
        quarantine: Path | None = None,
        pin_memory: bool = False,
        batches_ahead: int = 2,
        latents: bool = False,
        buckets: Buckets | None = None,
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
        self.numbered: Mixture | Bucketed = (
            Mixture(sources, seed, group_shards, jitter_samples)
            if buckets is None
            else Bucketed(sources, buckets, global_batch, seed, group_shards, jitter_samples)
        )
        side = image_size if scaled_side is None else scaled_side
        if side < image_size:
            raise DataError(f"scaled_side={side} must be at least image_size={image_size}")
        if latents and buckets is not None:
            raise DataError("buckets must be None: latents are of squares")
        if buckets is not None and (image_size, image_size) not in buckets.sizes:
            raise DataError(f"buckets are {buckets.sizes}: the square of image_size={image_size} is to be among them")
        if latents and side != image_size:
            raise DataError(f"scaled_side={side} must be image_size={image_size}: latents are of pictures' middle")
        pictures: PictureReader = (
            MomentsReader(image_size, flip)
            if latents
            else ImageReader(image_size, side, flip, smallest_side, max_pixels, reducing_gap)
        )
        members = MemberReader(storage, replace_bad_shards)
        stride = micro_batch * world * max(workers, 1)  # workers take turns
        self._samples = Samples(self.numbered, members, pictures, seed, inputs, stride, Slots(batches_ahead + 1))

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
        """Metrics of the global sample numbers below `number`: epochs; samples of each source if it has a name, and of
        each size if there are several."""
        metrics: dict[str, float] = {}
        for source, seen in zip(self.numbered.sources, self.numbered.seen(number), strict=True):
            mark = f"/{source.name}" if source.name else ""
            metrics[f"data/epoch{mark}"] = seen / len(source.index)
            if mark:
                metrics[f"data/samples{mark}"] = seen
        if isinstance(self.numbered, Bucketed):
            for (width, height), seen in self.numbered.seen_of_sizes(number).items():
                metrics[f"data/size/{width}x{height}"] = seen
        return metrics

    def whereabouts(self, step: int) -> str:
        """In words, the samples that this rank reads for an optimizer step, and the objects that they lie in."""
        numbers = list(itertools.chain(*itertools.islice(self.numbers(step), self.accumulation)))
        urls: dict[str, list[int]] = {}
        for number in numbers:
            urls.setdefault(self.numbered.sample(number)[1], []).append(number)
        return "samples are " + "; ".join(f"{', '.join(map(str, of))} in {url}" for url, of in urls.items())

    def step(self, number: int) -> Batch:
        """The whole global batch of optimizer step `number`, the same on every rank."""
        first = number * self.global_batch
        return self._samples.batch(range(first, first + self.global_batch))

    def batches(self, start_step: int = 0) -> Generator[Batch, None, None]:
        """Endless micro-batches, `accumulation` of them for each optimizer step.

        Close the generator to end its workers. Raises DataError when too many samples are bad, or when the
        store fails for good.
        """
        bad = BadSamples(self.max_bad_share, self.quarantine)
        numbers, receiver = _Numbers(self, start_step), Receiver((self.batches_ahead + 1) * self.workers)
        with closing(loaded(self._samples, numbers, self.workers, self.pin_memory, self.batches_ahead)) as batches:
            for batch, ready in batches:
                bad.judge(len(batch), batch.faults)
                yield replace(batch, ready=ready, images=receiver.own(batch.images))


class _Numbers:
    """The batch sampler: lists of global sample numbers."""

    def __init__(self, loader: Loader, start_step: int) -> None:
        self.loader = loader
        self.start_step = start_step

    def __iter__(self) -> Iterator[list[int]]:
        return self.loader.numbers(self.start_step)
