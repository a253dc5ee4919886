import json
import math
from pathlib import Path
from typing import Any

import pytest
from made_files import make_png, make_tar

from data.errors import DataError
from data.index import Index
from data.indexing import build_index
from data.loader import Loader
from data.mixture import IndexedSource
from data.stream import Storage
from data.where import BadCondition, Where

DETAILS = {"similarity": 0.31, "NSFW": "UNLIKELY", "width": 300, "height": 200, "LANGUAGE": "en", "punsafe": None}


@pytest.mark.parametrize(
    ("predicates", "failing"),
    [
        ({}, None),
        ({"similarity": {"at_least": 0.31, "at_most": 0.31}}, None),
        ({"similarity": {"at_least": 0.32}}, "similarity"),
        ({"similarity": {"at_most": 0.3}}, "similarity"),
        ({"NSFW": {"among": ["UNLIKELY", "UNSURE"]}, "LANGUAGE": {"among": ["de"]}}, "LANGUAGE"),
        ({"NSFW": {"not_among": ["NSFW"]}}, None),
        ({"aspect": {"at_least": 0.5, "at_most": 1.5}}, None),
        ({"aspect": {"at_most": 1.4}}, "aspect"),
        ({"shorter_side": {"at_least": 201}}, "shorter_side"),
        ({"punsafe": {"at_most": 0.5}}, "punsafe"),
        ({"punsafe": {"at_most": 0.5, "unknown": "keep"}}, None),
        ({"pwatermark": {"among": [1]}}, "pwatermark"),
        ({"NSFW": {"at_least": 1}}, "NSFW"),
        ({"NSFW": {"at_least": 1, "unknown": "keep"}}, None),
    ],
)
def test_conditions(predicates: dict[str, Any], failing: str | None) -> None:
    assert Where(predicates).failing(DETAILS) == failing


@pytest.mark.parametrize("value", [None, "0.5", True, [1], {}, math.nan, math.inf])
def test_what_is_no_number_is_unknown(value: object) -> None:
    assert Where({"a": {"at_least": 0}}).failing({"a": value}) == "a"
    assert Where({"a": {"at_least": 0, "unknown": "keep"}}).failing({"a": value}) is None


@pytest.mark.parametrize(
    ("predicates", "says"),
    [
        ({"a": 3}, "a=3: give one or more of at_least"),
        ({"a": {}}, "a={}: give one or more"),
        ({"a": {"unknown": "keep"}}, "give one or more"),
        ({"a": {"at_least": "x"}}, "a.at_least=x: it must be a number"),
        ({"a": {"more_than": 3}}, "a.more_than=3: no such condition; choose one of at_least"),
        ({"a": {"among": "x"}}, "a.among=x: it must be a list"),
        (
            {"LANGUAGE": {"among": ["en", False]}},
            "YAML takes no, off, yes and on for false and true: put texts in quotes",
        ),
        ({"a": {"at_least": 1, "unknown": "maybe"}}, "a.unknown=maybe: choose one of keep, drop"),
    ],
)
def test_conditions_that_cannot_be(predicates: dict[str, Any], says: str) -> None:
    with pytest.raises(BadCondition) as found:
        Where(predicates)
    assert says in str(found.value)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Three shards of ten samples whose likeness is a tenth of their number; every seventh has no .json."""
    for shard in range(3):
        members = {}
        for number in range(10 * shard, 10 * shard + 10):
            members[f"{number:03d}.png"] = make_png(number)
            if number % 7:
                members[f"{number:03d}.json"] = json.dumps({"similarity": number / 10}).encode()
            members[f"{number:03d}.txt"] = f"picture {number}".encode()
        (tmp_path / f"{shard}.tar").write_bytes(make_tar(members))
    return str(tmp_path)


def test_an_epoch_of_a_filtered_index_is_every_sample_that_fulfils_it_once(folder: str, tmp_path: Path) -> None:
    storage = Storage()
    index_url = build_index(folder, str(tmp_path / "index"), storage, Where({"similarity": {"at_least": 1.2}}))
    index = Index.load(index_url, storage)
    wanted = sorted(f"picture {number}" for number in range(30) if number % 7 and number >= 12)
    assert len(index) == len(wanted) == 15
    loaders = [
        Loader([IndexedSource(index)], storage, 5, 8, {}, 3, 3 // world, rank, world)
        for world in (1, 3)
        for rank in range(world)
    ]
    for first in (0, 15):
        seen = {n: caption for loader in loaders for batch in _steps(loader, first // 3, 5) for n, caption in batch}
        assert sorted(seen) == list(range(first, first + 15))
        assert sorted(seen.values()) == wanted


def _steps(loader: Loader, start: int, count: int) -> list[list[tuple[int, str]]]:
    stream = loader.batches(start)
    batches = [next(stream) for _ in range(count * loader.accumulation)]
    stream.close()
    return [list(zip(batch.numbers.tolist(), batch.captions, strict=True)) for batch in batches]


def test_what_is_left_out_is_counted(folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    build_index(folder, str(tmp_path / "index"), Storage(), Where({"similarity": {"at_least": 1.2}}))
    assert "15 samples in 3 shards; left out: 15 by similarity" in caplog.text
    with pytest.raises(DataError, match="0 samples in 3 shards; left out: 30 by similarity"):
        build_index(folder, str(tmp_path / "none"), Storage(), Where({"similarity": {"at_least": 100}}))


def test_a_field_that_no_sample_has_is_named(folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("similarity", "similarty"):
        build_index(folder, str(tmp_path / name), Storage(), Where({name: {"at_least": 0, "unknown": "keep"}}))
    told = [record.getMessage() for record in caplog.records]
    assert told == ["no sample has the field 'similarty' that a condition is about: check its name"]


def test_other_conditions_in_the_same_folder_are_another_index(folder: str, tmp_path: Path) -> None:
    storage, place = Storage(), str(tmp_path / "index")
    for least in (1.2, 0.0, 1.2):
        index = Index.load(build_index(folder, place, storage, Where({"similarity": {"at_least": least}})), storage)
        assert len(index) == sum(1 for number in range(30) if number % 7 and number >= 10 * least)
