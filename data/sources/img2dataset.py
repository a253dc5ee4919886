"""Tar shards that others wrote, as img2dataset does: to filter them, free them of duplicates, and re-shard them."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.errors import DataError
from data.index import INDEX_NAME, Index, find_shards
from data.indexing import build_index
from data.members import MemberReader
from data.sources import HELD_OUT, TRAIN, LeftOut, Sample
from data.sources.files import is_safe, shortened
from data.sources.held_out import HeldOut
from data.stream import Storage, join
from data.transforms import IMAGE_EXTENSIONS, details_of, image_of, text_of
from data.where import BadCondition, Where

log = logging.getLogger(__name__)
_NOT_IN_KEYS = re.compile(r"[./~]")


class Img2dataset:
    """The samples of tar shards, in their order, with whatever is known of them.

    url: a folder of shards, or shards with {0000..0999} and *, or a list of them. where: predicates that samples have
    to fulfil, as data.where has them. held_out: see HeldOut; the name is a sample's in its shard. output: the URL that
    they are prepared to. Where no index lies beside the shards, as `ldm prepare index` writes one, their headers are
    read first, by so many processes (None: one a CPU), into `output`/preparation/index, from where they are taken when
    this was interrupted. output=None: they stay in memory. Raises DataError.
    """

    splits = (TRAIN, HELD_OUT)
    dropped: Mapping[str, int] = {}

    def __init__(
        self,
        url: str | Sequence[str],
        storage: Storage,
        where: Mapping[str, Mapping[str, Any]] | None = None,
        held_out: float | str = 0.001,
        name: str = "img2dataset",
        attribution: str = "unknown",
        output: str | None = None,
        processes: int | None = None,
    ) -> None:
        self.name = name
        self.attribution = attribution
        try:
            self.where = Where({field: dict(conditions) for field, conditions in (where or {}).items()})
        except BadCondition as error:
            raise DataError(f"source.where.{error}") from error
        self.index = _indexed(url if isinstance(url, str) else list(url), storage, output, processes)
        self.members = MemberReader(storage, replace_bad_shards=True)
        self.held_out = HeldOut(held_out, storage)
        self.settings = {
            "shards": self.index.fingerprint,
            "where": self.where.predicates,
            "held_out": self.held_out.setting,
        }

    def __len__(self) -> int:
        return len(self.index)

    def key(self, position: int) -> str:
        name = _name(self.index.sample(position)[1].key)
        return shortened(_NOT_IN_KEYS.sub("_", name), name)

    def __getitem__(self, position: int) -> Sample:
        url, entry = self.index.sample(position)
        name = _name(entry.key)
        if not is_safe(name):
            raise LeftOut("unsafe_name")
        members = self.members.read(url, entry)
        details = details_of(members)
        if (failing := self.where.failing(details)) is not None:
            raise LeftOut(f"where_{failing}")
        extension, image = image_of(members)
        return Sample(
            self.key(position),
            image,
            extension,
            _caption(members, details),
            {field: value for field, value in details.items() if field not in ("key", "caption")},
            {kind: data for kind, data in members.items() if kind not in (*IMAGE_EXTENSIONS, "txt", "json")},
            self.held_out.split(name),
        )


def _indexed(url: str | list[str], storage: Storage, output: str | None, processes: int | None) -> Index:
    shards = find_shards(url, storage)
    if output is None or all(shard.offsets_url is not None for shard in shards):
        return Index.load(url, storage)
    inside = tuple(join(output, f"{split}/") for split in Img2dataset.splits)
    for shard in shards:
        if shard.url.startswith(inside):
            raise DataError(f"{shard.url} is there already, where this preparation would write: choose another url")
    folder = join(output, "preparation/index")
    log.info("no %s beside the shards: writing one to %s", INDEX_NAME, folder)
    index_url = build_index(url, folder, storage, processes=processes or len(os.sched_getaffinity(0)))
    return Index.load(index_url, storage)


def _name(key: str) -> str:
    """Of a sample within its shard: `tar -C folder .` begins all names with the folder that it was in."""
    return key.removeprefix("./")


def _caption(members: Mapping[str, bytes], details: Mapping[str, Any]) -> str:
    return text_of(members, "txt").strip() or str(details.get("caption") or "").strip()
