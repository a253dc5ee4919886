"""From a source to tar shards in LAION layout, with an index that says where each sample lies."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.contact_sheet import contact_sheet, evenly
from data.errors import DataError
from data.index import INDEX_NAME
from data.processes import work_through
from data.shard_writer import write_index, write_shard
from data.share import Share
from data.sources import HELD_OUT, LeftOut, Sample, Source
from data.stream import Storage, join
from data.survey import Choice, Criteria, Survey, choose, digest_of, histograms, survey
from data.transforms import BadSample

log = logging.getLogger(__name__)
MANIFEST_NAME = "manifest.json"
CONTACT_SHEET_NAME = "contact_sheet.html"
WORK_FOLDER = "preparation"
_VERSION = 2
_NOTES_VERSION = 2
_FEW = 5  # held-out samples: of a share that makes so many, hashes choose none once in 150 times


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

    Where candidates have the same key, ~2 stands behind that of the second one, and so on, whichever of them are left
    out. Nothing of others is written over: raises DataError when `url` holds what another preparation wrote, or shards
    of whoever else where these would be; and when no candidate becomes a sample.
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
        return _existing(manifest_url, wanted, source, storage)
    if not len(source):
        raise DataError(f"{source.name} has no picture: check its settings")
    work = _Work(source, url, storage, samples_per_shard, criteria, wanted)
    _check_place(work)
    _share(work.look, work.starts, lambda start: [work.survey_url(start)], work, share, processes, "looking", "chunk")
    notes = map(work.survey_url, work.starts)
    found = Survey.together((Survey.from_bytes(storage.read(note), note) for note in notes), len(source))
    choice = choose(found, source.splits, criteria)
    named = _named(choice, source)
    _report(choice, named, source)
    shards = list(_shards(choice, found, samples_per_shard))
    sizes = histograms(found.rows["size"][found.kept])
    del found  # of all candidates
    _share(work.write, shards, work.shard_urls, work, share, processes, "writing", "shard")
    return _finish(work, shards, choice, {"dropped_examples": named, "sizes": sizes})


@dataclass(frozen=True)
class _Shard:
    """One that is to be written. positions, repeats, sha256: of its samples, as Choice and ROW have them."""

    split: str
    number: int
    positions: NDArray[np.int64]
    repeats: NDArray[np.uint32]
    sha256: NDArray[np.uint64]


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
        self.digest = hashlib.sha256(_json([wanted, len(source), _NOTES_VERSION])).hexdigest()[:12]

    def survey_url(self, start: int) -> str:
        """The note of a look at the candidates from `start` on."""
        return join(self.url, f"{WORK_FOLDER}/survey-{start // self.samples_per_shard:05d}-{self.digest}.npz")

    def shard_urls(self, shard: _Shard) -> tuple[str, str]:
        """The note that a shard is written, which is what an index lists of it; and the shard."""
        name = f"{shard.number:05d}"
        note = f"{WORK_FOLDER}/{shard.split}-{name}-{self.digest}.json"
        return join(self.url, note), join(self.url, f"{shard.split}/{name}.tar")

    def look(self, start: int) -> None:
        """Surveys some candidates."""
        note = self.survey_url(start)
        if not self.storage.exists(note):
            stop = min(start + self.samples_per_shard, len(self.source))
            self.storage.write(note, survey(self.source, range(start, stop), self.criteria).to_bytes())

    def write(self, shard: _Shard) -> None:
        """Writes a shard."""
        note, tar = self.shard_urls(shard)
        if self.storage.exists(note) and self.storage.exists(tar):  # somebody may have removed the shard alone
            return
        samples = []
        for position, repeats, sha256 in zip(
            shard.positions.tolist(), shard.repeats.tolist(), shard.sha256, strict=True
        ):
            sample = self.sample(position, repeats)
            if (digest_of(sample.image) != sha256).any():
                raise self._changed(sample.key)
            samples.append((sample.key, members_of(sample)))
        listed = write_shard(join(self.url, shard.split), f"{shard.number:05d}", samples, self.storage)
        self.storage.write(note, _json(listed))

    def sample(self, position: int, repeats: int) -> Sample:
        """The sample at a position, before which so many candidates have its key."""
        try:
            sample = self.source[position]
            return replace(sample, key=f"{sample.key}~{repeats + 1}") if repeats else sample
        except (BadSample, LeftOut) as error:
            raise self._changed(f"candidate {position} ({error})") from error

    def _changed(self, what: str) -> DataError:
        return DataError(
            f"{what} of {self.source.name} isn't what it was when it was looked at: the data set changed meanwhile. "
            f"Remove {_written(self.url, self.source)} and prepare again"
        )


def _check_place(work: _Work) -> None:
    """Raises DataError unless this preparation has begun at its place, or nothing is there that it would mix with."""
    shards = [
        url
        for split in work.source.splits
        for url in work.storage.list(join(work.url, split))
        if url.endswith((".tar", INDEX_NAME))
    ]
    # later than the shards: another task may be writing both, the notes first
    notes = [url for url in work.storage.list(join(work.url, WORK_FOLDER)) if "-" in url.rpartition("/")[2]]
    if any(work.digest in url for url in notes):
        return
    if notes:
        raise DataError(
            f"{notes[0]} is of a preparation with other settings, or of another source. The command that began it goes "
            f"on with it; for this one choose another url, or remove {_written(work.url, work.source)}"
        )
    if shards:
        raise DataError(
            f"{shards[0]} is there already, one of {len(shards)}, and wasn't written by this preparation, which would "
            "write over it or mix with it: choose another url"
        )


def _written(url: str, source: Source) -> str:
    """What a preparation leaves, for messages; a shell's braces."""
    return join(url, "{" + ",".join([*source.splits, WORK_FOLDER]) + "}")


def _share(
    do: Callable[[Any], None],
    items: Sequence[Any],
    urls: Callable[[Any], Sequence[str]],
    work: _Work,
    share: Share,
    processes: int,
    doing: str,
    unit: str,
) -> None:
    """What isn't done yet of these items, as not all of its objects are there, this task's share first. When it
    returns, all is."""
    there = {url for folder in (WORK_FOLDER, *work.source.splits) for url in work.storage.list(join(work.url, folder))}
    missing = [item for item in share.order(items) if not there.issuperset(urls(item))]
    work_through(do, missing, processes, f"preparing {work.source.name}: {doing}", unit)


def _shards(choice: Choice, found: Survey, samples_per_shard: int) -> Iterator[_Shard]:
    for split, positions in choice.positions.items():
        for number, start in enumerate(range(0, len(positions), samples_per_shard)):
            here = positions[start : start + samples_per_shard]
            yield _Shard(split, number, here, choice.repeats[here], found.rows["sha256"][here])


def _named(choice: Choice, source: Source) -> dict[str, list[str]]:
    """Keys of the first candidates that were left out, by reason."""
    return {
        reason: [source.key(position) or f"candidate {position}" for position in positions]
        for reason, positions in choice.examples.items()
    }


def _report(choice: Choice, named: Mapping[str, Sequence[str]], source: Source) -> None:
    kept = sum(map(len, choice.positions.values()))
    reasons = ", ".join(f"{count} {reason} ({', '.join(named[reason])})" for reason, count in choice.dropped.items())
    told = f"{source.name}: {kept} of {len(source)} candidates are samples" + (
        f"; left out: {reasons}" if reasons else ""
    )
    if not kept:
        raise DataError(f"{told}. Check that these are the right files, and the criteria")
    log.info("%s", told)
    if not len(choice.positions.get(HELD_OUT, [0])):
        log.warning(
            "%s: no sample is held out, and training needs some: stop this, and prepare to another url with a larger "
            "source.held_out, such as %.2g; or give training others by data.held_out",
            source.name,
            min(0.5, _FEW / kept),
        )


def _finish(work: _Work, shards: Sequence[_Shard], choice: Choice, told: Mapping[str, object]) -> dict[str, Any]:
    """Indexes, contact sheet and manifest, of shards that are all there. told: what the manifest says besides."""
    source, url, storage = work.source, work.url, work.storage
    listed: dict[str, list[dict[str, Any]]] = {split: [] for split in source.splits}
    for shard in shards:
        listed[shard.split].append(json.loads(storage.read(work.shard_urls(shard)[0])))
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
        **told,
    }
    chosen = evenly(choice.positions)
    shown = [(split, work.sample(position, int(choice.repeats[position]))) for split, position in chosen]
    storage.write(join(url, CONTACT_SHEET_NAME), contact_sheet(manifest, shown))
    storage.write(join(url, MANIFEST_NAME), _json(manifest))
    log.info("prepared %s at %s: %s", source.name, url, manifest["splits"])
    return json.loads(_json(manifest))


def _existing(manifest_url: str, wanted: Mapping[str, object], source: Source, storage: Storage) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(storage.read(manifest_url))
    except ValueError as error:
        raise DataError(f"{manifest_url} is no manifest: {error}. Choose another url, or remove it") from error
    for key, value in json.loads(_json(wanted)).items():
        if found.get(key) != value:
            raise DataError(
                f"{manifest_url} has {key}={found.get(key)!r}, asked for is {value!r}: "
                f"choose another url, or remove all of the data set, {manifest_url} and "
                f"{_written(manifest_url.removesuffix('/' + MANIFEST_NAME), source)}"
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
