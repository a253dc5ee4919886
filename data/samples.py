"""From global sample numbers to a batch: order, bytes and transforms put together."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from data.batch import Batch, Fault
from data.errors import DataError
from data.handover import Slots
from data.index import Index, Part
from data.inputs import Input, Parts
from data.members import MemberReader
from data.offsets import Entry
from data.order import keyed_raw
from data.pictures import PictureReader, Seen, scaled
from data.read_ahead import ReadAhead
from data.transforms import BadSample, choose_caption, details_of
from data.view import Shape

_REPLACEMENT = 1  # a keyed stream of its own; the transforms draw from stream 0
_REPLACEMENTS = 20
_WAITING_BYTES = 16 << 20
"""Of members of samples whose pictures wait to be scaled together: a batch of large ones would take too much."""

Read = tuple[Seen, str, dict[str, Tensor]]
"""What is seen of the picture, caption, and the inputs by name."""
Located = tuple[int, str, Entry]
"""A sample's source, shard URL and entry."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """A sample whose picture is decoded. number: its global sample number. place: its shard URL and entry. spares: the
    places of those that may still stand in for it. The others are as in `data.inputs.Parts`."""

    number: int
    place: tuple[str, Entry]
    spares: Iterator[tuple[str, Entry]]
    members: Mapping[str, bytes]
    details: Mapping[str, Any]
    caption: str
    seen: Seen
    generator: np.random.Generator

    @property
    def held_bytes(self) -> int:
        """Of its members."""
        return sum(map(len, self.members.values()))


class Numbered(Protocol):
    """Which sample stands at a global sample number: a `data.mixture.Mixture`, or a `data.bucketing.Bucketed`."""

    def sample(self, number: int) -> Located:
        """Where it is."""
        ...

    def pool(self, number: int) -> Index | Part:
        """The samples that it was drawn from, and that one in its place is drawn from."""
        ...

    def shape(self, number: int) -> Shape | None:
        """Of its picture; None: the one that all pictures have."""
        ...


class Samples(Dataset[Batch]):
    """A torch data set whose items are micro-batches: of a list of global sample numbers it makes a Batch.

    While it makes one, the bytes of the next one that its process is asked for are read, whose numbers are larger by
    `stride`. slots: what a worker puts images into.

    An error that must end the run is returned, because torch would wrap a raised one in a worker's traceback.
    """

    def __init__(
        self,
        numbered: Numbered,
        members: MemberReader,
        pictures: PictureReader,
        seed: int,
        inputs: Mapping[str, Input],
        stride: int,
        slots: Slots,
    ) -> None:
        self.numbered = numbered
        self.members = members
        self.pictures = pictures
        self.seed = seed
        self.inputs = inputs
        self.stride = stride
        self.slots = slots
        self._ahead = ReadAhead()
        self._following: tuple[list[int], list[Located]] = [], []

    def __getitem__(self, number: int) -> Batch:
        return self.batch([number])

    def __getitems__(self, numbers: Sequence[int]) -> Batch | Exception:
        try:
            if not self._ahead.begun:
                self.members.storage.traffic.take()  # of others who read through this storage before
            self._ahead.wait()
            known, following = self._following
            located = following if known == list(numbers) else self._located(numbers)
            self._prefetch(located)
            numbers_ahead = [number + self.stride for number in numbers]
            ahead = self._located(numbers_ahead)
            self._following = numbers_ahead, ahead
            self._ahead.start(lambda: self._prefetch(ahead))
            return self._batch(numbers, located)
        except DataError as error:
            return error

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The same, with nothing read ahead. Raises DataError."""
        self.members.storage.traffic.take()
        located = self._located(numbers)
        self._prefetch(located)
        return self._batch(numbers, located)

    def _located(self, numbers: Sequence[int]) -> list[Located]:
        return [self.numbered.sample(number) for number in numbers]

    def _prefetch(self, located: Sequence[Located]) -> None:
        self.members.prefetch((url, entry) for _, url, entry in located)

    def _batch(self, numbers: Sequence[int], located: Sequence[Located]) -> Batch:
        samples, faults = self._read(numbers, located)
        moments = [seen.moments for seen, _, _ in samples if seen.moments is not None]
        images = self.slots.stack([torch.from_numpy(seen.image) for seen, _, _ in samples])
        return Batch(
            images=images.permute(0, 3, 1, 2),
            moments=torch.stack(moments) if moments else None,
            inputs={name: torch.stack([read[name] for _, _, read in samples]) for name in self.inputs},
            captions=[caption for _, caption, _ in samples],
            numbers=torch.tensor(numbers, dtype=torch.int64),
            sources=torch.tensor([source for source, _, _ in located], dtype=torch.int64),
            faults=faults,
            traffic=self.members.storage.traffic.take(),
        )

    def _read(self, numbers: Sequence[int], located: Sequence[Located]) -> tuple[list[Read], list[Fault]]:
        """What is read of the samples, or of their spares, and what was wrong with those."""
        found: list[Read] = []
        faults: list[Fault] = []
        waiting: list[_Opened] = []
        held_bytes = 0
        for number, (_, url, entry) in zip(numbers, located, strict=True):
            waiting.append(self._opened(number, itertools.chain([(url, entry)], self._spares(number)), faults))
            held_bytes += waiting[-1].held_bytes
            if held_bytes > _WAITING_BYTES:
                found += self._finished(waiting, faults)
                waiting, held_bytes = [], 0
        found += self._finished(waiting, faults)
        return found, sorted(faults, key=lambda fault: fault.number)

    def _finished(self, opened: Sequence[_Opened], faults: list[Fault]) -> list[Read]:
        """These samples with their images ready and their inputs read."""
        seen = scaled([sample.seen for sample in opened])
        return [self._whole(*each, faults) for each in zip(opened, seen, strict=True)]

    def _opened(self, number: int, places: Iterator[tuple[str, Entry]], faults: list[Fault]) -> _Opened:
        """The first of a sample and its spares whose picture can be decoded. Raises DataError where none can."""
        last = "none is left"
        for place in places:
            try:
                members = self.members.read(*place)
                generator = np.random.Generator(np.random.Philox(key=_key(self.seed, number)))
                details = details_of(members)
                caption = choose_caption(members, details, generator)
                seen = self.pictures.read(members, generator, self.numbered.shape(number))
                return _Opened(number, place, places, members, details, caption, seen, generator)
            except BadSample as error:
                faults.append(_fault(error, place, number))
                last = str(error)
        raise DataError(
            f"sample number {number} and {_REPLACEMENTS} others in its place are bad, the last: "
            f"{faults[-1]}: {last}. Check that these are the right shards"
        )

    def _whole(self, opened: _Opened, seen: Seen, faults: list[Fault]) -> Read:
        """A sample with its inputs, or the first of its spares that has them."""
        while True:
            parts = Parts(opened.members, opened.details, opened.caption, seen.image, seen.view, opened.generator)
            try:
                return seen, opened.caption, {name: kind.read(parts) for name, kind in self.inputs.items()}
            except BadSample as error:
                faults.append(_fault(error, opened.place, opened.number))
            opened = self._opened(opened.number, opened.spares, faults)
            seen = scaled([opened.seen])[0]

    def _spares(self, number: int) -> Iterator[tuple[str, Entry]]:
        """Those that stand in for a bad sample, one after the other, by (seed, number) alone: of the same pool."""
        pool = self.numbered.pool(number)
        for spare in keyed_raw((self.seed, number), (0, _REPLACEMENT), _REPLACEMENTS):
            yield pool.sample(int(spare) % len(pool))


def _fault(error: BadSample, place: tuple[str, Entry], number: int) -> Fault:
    return Fault(error.reason, place[0], place[1].key, number, error.detail)


def _key(seed: int, number: int) -> NDArray[np.uint64]:
    return np.array([seed, number], dtype=np.uint64)
