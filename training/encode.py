"""One rank's share of encoding: shards of images to shards of latents."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from data.bad_samples import BadSamples
from data.errors import DataError
from data.index import Index
from data.latents import BAD, MOMENTS, PRECISIONS, LatentsKey, member_of
from data.members import MemberReader
from data.pictures import ImageReader
from data.shard_parts import Part, ShardParts
from data.shard_writer import write_index, write_shard
from data.stream import Storage, join
from data.transforms import DEFAULT_MAX_PIXELS
from models.latent_diffusion import FirstStage
from training.data_sources import latents_folder, without_latents
from training.dataset import training_sources
from training.distributed import Distributed
from training.preemption import StopRequest
from training.progress import Bar

log = logging.getLogger(__name__)
PLAIN_KEY = re.compile(r"[\w-]+(/[\w-]+)*")


def encode_sources(config: DictConfig, ranks: Distributed) -> bool:
    """Writes the latents of this rank's share of the shards that have none yet, of all sources of data.train.

    False when it was asked to stop before: a shard under way is lost, those that were written stay.
    """
    stop = StopRequest()
    storage: Storage = instantiate(config.data.storage)
    first_stage: FirstStage = instantiate(config.first_stage).to(ranks.device)
    quarantine = Path(config.run.folder) / "bad_samples" / f"latents-rank-{ranks.rank:05d}.jsonl"
    bad = BadSamples(config.data.max_bad_share, quarantine)
    for source in training_sources(without_latents(config), storage):
        folder = latents_folder(config.data.latents, source.name)
        key = LatentsKey.read(folder, storage)
        assert key is not None, "written before the ranks started"
        encoder = Encoder(first_stage, key, folder, storage, ranks.device)
        count = len(source.index.shards)
        there = set(ranks.broadcast_object(storage.list(folder) if ranks.is_main else None))
        own = shards_of_share(config, count)
        left = [number for number in own if encoder.note_url(number) not in there]
        mine = left[ranks.rank :: ranks.world]
        if ranks.is_main:
            log.info("latents in %s: %d of %d shards to write, on %d ranks", folder, len(left), len(own), ranks.world)
        with contextlib.closing(_parts(config, source.index, storage, mine)) as parts:
            stopped = not _encode(encoder, parts, source.index, mine, bad, stop, ranks)
        if ranks.any(stopped):
            if ranks.is_main:
                log.info("stopped; the same command goes on with the shards that are left")
            return False
        if ranks.is_main:
            written = set(storage.list(folder))
            if all(encoder.note_url(number) in written for number in range(count)):
                _finish(encoder, source.index, source.name or "latents")
            else:
                log.info("latents in %s: the share is written; the index comes with the last of the others", folder)
        ranks.barrier()
    return True


def shards_of_share(config: DictConfig, count: int) -> range:
    """Numbers of the shards that a share writes, of so many: every share.of-th one."""
    return range(config.share.number, count, config.share.of)


def share_is_written(config: DictConfig, storage: Storage) -> bool:
    """Whether all shards of this share are there, of all sources."""
    for source in training_sources(without_latents(config), storage):
        folder = latents_folder(config.data.latents, source.name)
        key, there = LatentsKey.read(folder, storage), set(storage.list(folder))
        if key is None:
            return False
        names = (key.shard_name(number) for number in shards_of_share(config, len(source.index.shards)))
        if not all(join(folder, f"{name}.json") in there for name in names):
            return False
    return True


class Encoder:
    """Makes shards of latents of one source. key, folder: what is written, and where to."""

    def __init__(
        self, first_stage: FirstStage, key: LatentsKey, folder: str, storage: Storage, device: torch.device
    ) -> None:
        self.first_stage = first_stage
        self.key = key
        self.folder = folder
        self.storage = storage
        self.device = device

    def note_url(self, number: int) -> str:
        """What is there when a shard is: a note with what the index is to list of it."""
        return join(self.folder, f"{self.key.shard_name(number)}.json")

    def samples(self, part: Part) -> Iterator[dict[str, bytes]]:
        """The members of a part's samples, with moments in the place of pictures. Raises DataError when moments
        aren't finite, or beyond the precision."""
        images = part.images.to(self.device)
        moments = self._moments(images)
        mirrored = self._moments(images.flip(-1)) if self.key.mirrored else None
        for row, members in enumerate(part.members):
            view = part.views[row]
            if view is None:
                yield {BAD: part.faults[row].reason.encode()}
                continue
            of_mirrored = None if mirrored is None else mirrored[row]
            if not all(m.isfinite().all() for m in (moments[row], of_mirrored) if m is not None):
                raise DataError(
                    f"precision={self.key.precision}: the moments of sample {part.keys[row]} in shard {part.shard} lie "
                    "beyond it, or aren't finite; choose bf16, or check first_stage.weights"
                )
            yield {**members, MOMENTS: member_of(moments[row], of_mirrored, view)}

    def write(self, number: int, samples: Sequence[tuple[str, dict[str, bytes]]], of: str, bad: Counter[str]) -> None:
        """Writes a shard, and then its note. of: URL of the shard of images. bad: its bad samples by reason."""
        shard = write_shard(self.folder, self.key.shard_name(number), samples, self.storage)
        note = {"shard": shard, "of": of, "bad": dict(bad)}
        self.storage.write(self.note_url(number), json.dumps(note, indent=1).encode())

    def note(self, number: int) -> dict[str, Any]:
        """The note of a shard that is written."""
        note: dict[str, Any] = json.loads(self.storage.read(self.note_url(number)))
        return note

    def _moments(self, images: Tensor) -> Tensor:
        return self.first_stage.moments(images).to(PRECISIONS[self.key.precision]).cpu()


def _parts(config: DictConfig, index: Index, storage: Storage, shards: Sequence[int]) -> Generator[Part, None, None]:
    size, gap = config.data.image_size, config.data.reducing_gap
    pictures = ImageReader(size, size, False, smallest_side=1, max_pixels=DEFAULT_MAX_PIXELS, reducing_gap=gap)
    members = MemberReader(storage, config.data.bad_shards == "replace")
    return ShardParts(index, members, pictures).batches(shards, config.batch.micro_size, config.data.workers)


def _encode(
    encoder: Encoder,
    parts: Iterator[Part],
    index: Index,
    shards: Sequence[int],
    bad: BadSamples,
    stop: StopRequest,
    ranks: Distributed,
) -> bool:
    """Encodes and writes the shards, whose parts come in this order; False when it was asked to stop."""
    with Bar("encode", sum(index.shard_sizes[number] for number in shards), ranks.is_main) as bar:
        for number in shards:
            samples: list[tuple[str, dict[str, bytes]]] = []
            keys: set[str] = set()
            reasons = Counter[str]()
            while len(samples) < index.shard_sizes[number]:
                if stop.received is not None:
                    return False
                part = next(parts)
                assert (part.shard, part.first) == (number, len(samples))
                bad.judge(len(part), list(part.faults.values()))
                reasons.update(fault.reason for fault in part.faults.values())
                for key, members in zip(part.keys, encoder.samples(part), strict=True):
                    samples.append((_name(key, len(samples), keys), members))
                bar.advance(len(part))
            encoder.write(number, samples, index.shards[number].url, reasons)
    return True


def _name(key: str, position: int, taken: set[str]) -> str:
    """A sample's name in the shard: its key, unless that is taken already or no plain path."""
    name = key if PLAIN_KEY.fullmatch(key) and key not in taken else f"sample-{position:06d}"
    taken.add(name)
    return name


def _finish(encoder: Encoder, index: Index, name: str) -> None:
    """Writes the index, by which the latents are complete."""
    notes = [encoder.note(number) for number in range(len(index.shards))]
    bad = sum((Counter(note["bad"]) for note in notes), Counter[str]())
    described = f"latents, see {encoder.folder}/latents.json"
    write_index(encoder.folder, name, described, [note["shard"] for note in notes], encoder.storage)
    told = "".join(f", {count} bad by {reason}" for reason, count in sorted(bad.items()))
    log.info("latents in %s: %d samples in %d shards%s", encoder.folder, len(index), len(notes), told)
