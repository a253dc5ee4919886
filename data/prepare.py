"""From a source to tar shards in LAION layout, with an index that says where each sample lies."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.contact_sheet import contact_sheet, evenly
from data.errors import DataError
from data.processes import work_through
from data.shard_writer import write_index, write_shard
from data.share import Share
from data.sources import LeftOut, Sample, Source
from data.stream import Storage, join
from data.survey import Choice, Criteria, Survey, choose, survey
from data.transforms import BadSample

log = logging.getLogger(__name__)
MANIFEST_NAME = "manifest.json"
CONTACT_SHEET_NAME = "contact_sheet.html"
WORK_FOLDER = "preparation"
_VERSION = 2
_SIDES = (64, 128, 256, 512, 1024, 2048)
_ASPECTS = (0.5, 0.75, 0.95, 1.05, 1.34, 2.0)


def prepare(
    source: Source,
    url: str,
    storage: Storage,
    samples_per_shard: int = 1000,
    criteria: Criteria = Criteria(),  # noqa: B008  # frozen
    processes: int = 1,
    share: Share = Share(),  # noqa: B008  # frozen
) -> dict[str, Any]:
    """Write the source's samples to `url`/train, `url`/heldout or whatever splits it has, and return the manifest.

    Each split holds 00000.tar, 00000.offsets.npz, … and index.json (wids format); each sample is a picture, a .json,
    and a .txt where it has a caption. `url`/contact_sheet.html shows some. `url`/manifest.json is the last: it is there
    when everything is.

    All candidates are looked at before the first shard is written, so that shards are full and no duplicate is missed.
    What is found, samples_per_shard candidates at a time, and which shards there are, is noted in `url`/preparation: a
    preparation that was cut short goes on there. The same source gives the same bytes, over any number of processes and
    of tasks (see Share), however often they were stopped. A process holds one shard in memory, twice.

    Raises DataError when `url` holds a complete data set of other content, and when no candidate becomes a sample.
    """
    if samples_per_shard < 1:
        raise DataError(f"samples_per_shard={samples_per_shard} must be at least 1")
    wanted = {
        "version": _VERSION,
        "source": source.name,
        "settings": dict(source.settings),
        "samples_per_shard": samples_per_shard,
        "criteria": asdict(criteria),
        "attribution": source.attribution,
    }
    manifest_url = join(url, MANIFEST_NAME)
    if storage.exists(manifest_url):
        return _existing(manifest_url, wanted, storage)
    if not len(source):
        raise DataError(f"{source.name} has no picture: check its settings")
    work = _Work(source, url, storage, samples_per_shard, criteria, wanted)
    _share(work.look, work.starts, work.survey_url, work, share, processes, "looking", "chunk")
    surveys = [Survey.from_bytes(storage.read(note), note) for note in map(work.survey_url, work.starts)]
    found = Survey.together(surveys)
    choice = choose(found, source.splits, criteria)
    _report(choice, source)
    shards = list(_shards(choice, found, samples_per_shard))
    _share(work.write, shards, work.shard_url, work, share, processes, "writing", "shard")
    return _finish(work, shards, found, choice)


@dataclass(frozen=True)
class _Shard:
    """One that is to be written. positions, sha256: of its samples in the source, and of their pictures."""

    split: str
    number: int
    positions: NDArray[np.int64]
    sha256: NDArray[np.uint8]


class _Work:
    """The steps of a preparation, each of which may be done by another process, or twice."""

    def __init__(
        self,
        source: Source,
        url: str,
        storage: Storage,
        samples_per_shard: int,
        criteria: Criteria,
        wanted: Mapping[str, object],
    ) -> None:
        self.source = source
        self.url = url
        self.storage = storage
        self.samples_per_shard = samples_per_shard
        self.criteria = criteria
        self.wanted = wanted
        self.starts = range(0, len(source), samples_per_shard)
        # part of the notes' names, so that those of another preparation are never taken for this one's
        self.digest = hashlib.sha256(_json([wanted, len(source)])).hexdigest()[:12]

    def survey_url(self, start: int) -> str:
        """The note of a look at the candidates from `start` on."""
        return join(self.url, f"{WORK_FOLDER}/survey-{start // self.samples_per_shard:05d}-{self.digest}.npz")

    def shard_url(self, shard: _Shard) -> str:
        """The note that a shard is written: what an index lists of it."""
        return join(self.url, f"{WORK_FOLDER}/{shard.split}-{shard.number:05d}-{self.digest}.json")

    def look(self, start: int) -> None:
        """Surveys some candidates."""
        note = self.survey_url(start)
        if not self.storage.exists(note):
            stop = min(start + self.samples_per_shard, len(self.source))
            self.storage.write(note, survey(self.source, range(start, stop), self.criteria).to_bytes())

    def write(self, shard: _Shard) -> None:
        """Writes a shard."""
        note = self.shard_url(shard)
        if self.storage.exists(note):
            return
        samples = []
        for position, sha256 in zip(shard.positions.tolist(), shard.sha256, strict=True):
            sample = self._again(position)
            if hashlib.sha256(sample.image).digest() != sha256.tobytes():
                raise self._changed(sample.key)
            samples.append((sample.key, members_of(sample)))
        if len({key for key, _ in samples}) < len(samples):
            raise DataError(f"{self.source.name} gives the same key twice, near {samples[-1][0]!r}")
        listed = write_shard(join(self.url, shard.split), f"{shard.number:05d}", samples, self.storage)
        self.storage.write(note, _json(listed))

    def _again(self, position: int) -> Sample:
        try:
            return self.source[position]
        except (BadSample, LeftOut) as error:
            raise self._changed(f"candidate {position} ({error})") from error

    def _changed(self, what: str) -> DataError:
        return DataError(
            f"{what} of {self.source.name} isn't what it was when it was looked at: the data set changed meanwhile. "
            f"Remove {join(self.url, WORK_FOLDER)} and prepare again"
        )


def _share(
    do: Callable[[Any], None],
    items: Sequence[Any],
    note_url: Callable[[Any], str],
    work: _Work,
    share: Share,
    processes: int,
    doing: str,
    unit: str,
) -> None:
    """What isn't noted yet of these items, this task's share first. When it returns, all are."""
    there = set(work.storage.list(join(work.url, WORK_FOLDER)))
    missing = [item for item in share.order(items) if note_url(item) not in there]
    work_through(do, missing, processes, f"preparing {work.source.name}: {doing}", unit)


def _shards(choice: Choice, found: Survey, samples_per_shard: int) -> list[_Shard]:
    return [
        _Shard(split, number, here := positions[start : start + samples_per_shard], found.sha256[here])
        for split, positions in choice.positions.items()
        for number, start in enumerate(range(0, len(positions), samples_per_shard))
    ]


def _report(choice: Choice, source: Source) -> None:
    kept = sum(map(len, choice.positions.values()))
    reasons = ", ".join(
        f"{count} {reason} ({', '.join(choice.examples[reason])})" for reason, count in choice.dropped.items()
    )
    told = f"{source.name}: {kept} of {len(source)} candidates are samples" + (
        f"; left out: {reasons}" if reasons else ""
    )
    if not kept:
        raise DataError(f"{told}. Check that these are the right files, and the criteria")
    log.info("%s", told)


def _finish(work: _Work, shards: Sequence[_Shard], found: Survey, choice: Choice) -> dict[str, Any]:
    """Indexes, contact sheet and manifest, of shards that are all there."""
    source, url, storage = work.source, work.url, work.storage
    listed: dict[str, list[dict[str, Any]]] = {split: [] for split in source.splits}
    for shard in shards:
        listed[shard.split].append(json.loads(storage.read(work.shard_url(shard))))
    for split, entries in listed.items():
        write_index(join(url, split), f"{source.name} {split}", source.attribution, entries, storage)
    manifest = {
        **work.wanted,
        "candidates": len(source),
        "splits": {
            split: {
                "samples": sum(entry["nsamples"] for entry in entries),
                "shards": len(entries),
                "bytes": sum(entry["filesize"] for entry in entries),
            }
            for split, entries in listed.items()
        },
        "dropped": {**source.dropped, **choice.dropped},
        "dropped_examples": choice.examples,
        "sizes": _histograms(found.sizes[np.concatenate(list(choice.positions.values()))]),
    }
    shown = [(split, work._again(position)) for split, position in evenly(choice.positions)]
    storage.write(join(url, CONTACT_SHEET_NAME), contact_sheet(manifest, shown))
    storage.write(join(url, MANIFEST_NAME), _json(manifest))
    log.info("prepared %s at %s: %s", source.name, url, manifest["splits"])
    return json.loads(_json(manifest))


def _histograms(sizes: NDArray[np.int32]) -> dict[str, dict[str, int]]:
    """How many pictures have which shorter side in pixels, and which width by height. sizes: int32 [N, 2]."""
    return {
        "shorter_side": _histogram(sizes.min(axis=1), _SIDES),
        "aspect": _histogram(sizes[:, 0] / sizes[:, 1], _ASPECTS),
    }


def _histogram(values: NDArray[Any], edges: Sequence[float]) -> dict[str, int]:
    names = [f"below {edges[0]}", *(f"{low} to {high}" for low, high in pairwise(edges))]
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return dict(zip([*names, f"from {edges[-1]}"], counts.tolist(), strict=True))


def _existing(manifest_url: str, wanted: Mapping[str, object], storage: Storage) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(storage.read(manifest_url))
    except ValueError as error:
        raise DataError(f"{manifest_url} is no manifest: {error}. Choose another url, or remove it") from error
    for key, value in json.loads(_json(wanted)).items():
        if found.get(key) != value:
            raise DataError(
                f"{manifest_url} has {key}={found.get(key)!r}, asked for is {value!r}: "
                "choose another url, or remove the data set there"
            )
    log.info("%s is complete already", manifest_url)
    return found


def members_of(sample: Sample) -> dict[str, bytes]:
    """The files of a sample in its shard, by extension. What is no text in captions and metadata becomes "?"."""
    details = {"key": sample.key, **({"caption": sample.caption} if sample.caption else {}), **sample.metadata}
    return {
        sample.extension: sample.image,
        **({"txt": sample.caption.encode(errors="replace")} if sample.caption else {}),
        "json": json.dumps(details, ensure_ascii=False, sort_keys=True).encode(errors="replace"),
        **sample.members,
    }


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
