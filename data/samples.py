"""From global sample numbers to a batch: order, bytes and transforms put together."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from data.batch import Batch, Fault
from data.errors import DataError, NotFound
from data.inputs import Input, Parts
from data.mixture import Mixture
from data.offsets import BLOCK_BYTES, Entry
from data.order import keyed_raw
from data.stream import Storage
from data.transforms import BadSample, Reason, choose_caption, decode_image, details_of, image_bytes
from data.view import chosen

_REPLACEMENT = 1  # a keyed stream of its own; the transforms draw from stream 0
_REPLACEMENTS = 20
_LARGEST_SAMPLE_BYTES = 256 << 20

Read = tuple[NDArray[np.uint8], str, dict[str, Tensor]]
"""Image uint8 [size, size, 3], caption, and the inputs by name."""


class Samples(Dataset[Batch]):
    """A torch data set whose items are micro-batches: of a list of global sample numbers it makes a Batch.

    An error that must end the run is returned, because torch would wrap a raised one in a worker's traceback.
    """

    def __init__(
        self,
        mixture: Mixture,
        storage: Storage,
        seed: int,
        image_size: int,
        inputs: Mapping[str, Input],
        scaled_side: int,
        flip: bool,
        smallest_side: int,
        max_pixels: int,
        replace_bad_shards: bool,
    ) -> None:
        self.mixture = mixture
        self.storage = storage
        self.seed = seed
        self.image_size = image_size
        self.inputs = inputs
        self.scaled_side = scaled_side
        self.flip = flip
        self.smallest_side = smallest_side
        self.max_pixels = max_pixels
        self.replace_bad_shards = replace_bad_shards

    def __getitem__(self, number: int) -> Batch:
        return self._batch([number])

    def __getitems__(self, numbers: Sequence[int]) -> Batch | Exception:
        try:
            return self._batch(numbers)
        except DataError as error:
            return error

    def _batch(self, numbers: Sequence[int]) -> Batch:
        located = [self.mixture.sample(number) for number in numbers]
        self.storage.prefetch((url, *_span(entry)) for _, url, entry in located if _is_readable(entry))
        faults: list[Fault] = []
        samples = [self._sample(number, *place, faults) for number, place in zip(numbers, located, strict=True)]
        images = np.stack([image for image, _, _ in samples])  # [B, H, W, 3]
        return Batch(
            images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
            inputs={name: torch.stack([read[name] for _, _, read in samples]) for name in self.inputs},
            captions=[caption for _, caption, _ in samples],
            numbers=torch.tensor(numbers, dtype=torch.int64),
            sources=torch.tensor([source for source, _, _ in located], dtype=torch.int64),
            faults=faults,
        )

    def _sample(self, number: int, source: int, url: str, entry: Entry, faults: list[Fault]) -> Read:
        """What is read of a sample; a bad sample's spare is of the same source, by (seed, number) alone."""
        index = self.mixture.sources[source].index
        spares = keyed_raw((self.seed, number), (0, _REPLACEMENT), _REPLACEMENTS)
        for spare in [*spares, None]:
            try:
                return self._read(url, entry, number)
            except BadSample as error:
                faults.append(Fault(error.reason, url, entry.key, number))
            if spare is not None:
                url, entry = index.sample(int(spare) % len(index))
        raise DataError(
            f"sample number {number} and {_REPLACEMENTS} others in its place are bad, the last: "
            f"{faults[-1]}. Check that these are the right shards"
        )

    def _read(self, url: str, entry: Entry, number: int) -> Read:
        if entry.fault == "truncated":
            raise BadSample("truncated", "the shard ends within the sample")
        members = self._members(url, entry)
        generator = np.random.Generator(np.random.Philox(key=_key(self.seed, number)))
        details = details_of(members)
        caption = choose_caption(members, details, generator)
        picture = decode_image(image_bytes(members), self.max_pixels)
        height, width = picture.shape[:2]
        if min(height, width) < self.smallest_side:
            raise BadSample("too_small", f"{width} x {height} is below {self.smallest_side}")
        view = chosen(height, width, self.image_size, self.scaled_side, self.flip, generator)
        image = view.cut(picture, self.image_size, Image.Resampling.LANCZOS)
        parts = Parts(members, details, caption, image, view, generator)
        return image, caption, {name: kind.read(parts) for name, kind in self.inputs.items()}

    def _members(self, url: str, entry: Entry) -> dict[str, bytes]:
        if not entry.members:
            return {}
        start, stop = _span(entry)
        if not _is_readable(entry):
            raise BadSample("too_many_bytes", f"{stop - start} are above {_LARGEST_SAMPLE_BYTES}")
        for last_try in (False, True):
            try:
                data = self.storage.read(url, start, stop)
            except NotFound as error:
                raise self._bad_shard("missing", url, entry, str(error)) from error
            members = {
                extension: data[member.offset - start : member.offset - start + member.size]
                for extension, member in entry.members.items()
            }
            wrong = _wrong(data, start, stop, members, entry)
            if wrong is None:
                break
            if last_try:
                detail = f"{len(data)} of {stop - start} bytes"
                raise BadSample(wrong, detail) if wrong == "corrupt" else self._bad_shard(wrong, url, entry, detail)
            self.storage.forget(url)  # a ranged read is not verified on the way: ask the store once more
        return members

    def _bad_shard(self, reason: Reason, url: str, entry: Entry, detail: str) -> Exception:
        """What to raise for a shard that is no longer what was indexed."""
        if self.replace_bad_shards:
            return BadSample(reason, detail)
        return DataError(
            f"{url} is not what was indexed ({reason}, sample {entry.key}: {detail}). Bring the shard back or prepare "
            "the index again; or let such samples be replaced (data.bad_shards=replace)"
        )


def _span(entry: Entry) -> tuple[int, int]:
    """Bytes of the shard that hold all members of a sample, with their headers."""
    members = entry.members.values()
    return min(m.offset for m in members) - BLOCK_BYTES, max(m.offset + m.size for m in members)


def _is_readable(entry: Entry) -> bool:
    """False for a sample that would fill the memory: its size is what a header claims."""
    if not entry.members:
        return False
    start, stop = _span(entry)
    return stop - start <= _LARGEST_SAMPLE_BYTES


def _wrong(data: bytes, start: int, stop: int, members: Mapping[str, bytes], entry: Entry) -> Reason | None:
    """What is wrong with bytes [start, stop) of a shard, which hold the members of a sample; None: nothing."""
    if len(data) < stop - start:
        return "truncated"
    headers_crc32 = 0
    for member in entry.members.values():
        end = member.offset - start
        headers_crc32 = zlib.crc32(data[end - BLOCK_BYTES : end], headers_crc32)
    if headers_crc32 != entry.headers_crc32:
        return "changed"
    for extension, member in entry.members.items():
        if member.crc32 is not None and zlib.crc32(members[extension]) != member.crc32:
            return "corrupt"
    return None


def _key(seed: int, number: int) -> NDArray[np.uint64]:
    return np.array([seed, number], dtype=np.uint64)
