"""The data of a run: an index of its own where the shards have none or samples are left out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data.errors import DataError
from data.index import Index
from data.indexing import build_index
from data.stream import Storage
from tests.training.runs import composed
from training.dataset import make_ready, note_data, training_sources


@pytest.fixture
def bare(squares: Path, tmp_path: Path) -> Path:
    """The squares as somebody else's tars: without an index."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for shard in (squares / "train").glob("*.tar"):
        shutil.copy(shard, folder)
    return folder


def test_a_run_indexes_bare_shards_once_and_keeps_to_that(
    tiny_diffusion: list[str], bare: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = composed([*tiny_diffusion, f"data.train={bare}", f"run.folder={tmp_path / 'run'}"])
    make_ready(config)
    assert "writing an index of its own" in caplog.text
    [before] = training_sources(config, Storage())
    assert len(before.index) == 56
    assert all(shard.offsets_url for shard in before.index.shards)
    shutil.copy(bare / "00000.tar", bare / "added.tar")
    caplog.clear()
    make_ready(config)
    assert "writing an index" not in caplog.text
    [after] = training_sources(config, Storage())
    assert after.index.fingerprint == before.index.fingerprint
    assert sorted(path.name for path in bare.iterdir()) == ["00000.tar", "00001.tar", "00002.tar", "added.tar"]


def test_conditions_of_all_sources_and_of_one(tiny_diffusion: list[str], squares: Path, tmp_path: Path) -> None:
    red = "{caption:{among:[a red square]}}"
    sources = f"{{some:{{url:'{squares}/train'}},reds:{{url:'{squares}/train',where:{red}}}}}"
    config = composed(
        [
            *tiny_diffusion,
            f"data.train={sources}",
            "data.where={caption:{not_among:[a blue square]}}",
            f"run.folder={tmp_path}",
        ]
    )
    make_ready(config)
    some, reds = training_sources(config, Storage())
    details = [
        [
            json.loads(Storage().read(url, m.offset, m.offset + m.size))
            for url, entry in _all(source.index)
            for m in [entry.members["json"]]
        ]
        for source in (some, reds)
    ]
    assert {d["caption"] for d in details[0]} == {"a red square", "a green square", "a yellow square"}
    assert {d["caption"] for d in details[1]} == {"a red square"}


def _all(index):  # type: ignore[no-untyped-def]
    return [index.sample(position) for position in range(len(index))]


def test_too_few_samples_are_left(tiny_diffusion: list[str], tmp_path: Path) -> None:
    config = composed([*tiny_diffusion, "data.where={key:{among:['0001']}}", f"run.folder={tmp_path}"])
    with pytest.raises(DataError, match=r"batch.global_size=8: a step takes more samples than the 1 of"):
        make_ready(config)


def test_a_resumed_run_tells_when_its_data_is_not_what_it_was(
    tiny_diffusion: list[str], squares: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = composed([*tiny_diffusion, f"run.folder={tmp_path}"])
    sources = training_sources(config, Storage())
    note_data(sources, config, resumed=False)
    note_data(sources, config, resumed=True)
    assert not caplog.records
    note_data([replace(sources[0], weight=2.0)], config, resumed=True)
    assert "the order of samples is another one from here on" in caplog.text


def test_buckets_are_part_of_what_the_order_follows_from(
    tiny_diffusion: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = []
    for aspect in (2, 2, 4):
        buckets = f"data.buckets={{step:8,largest_aspect:{aspect}}}"
        config = composed([*tiny_diffusion, f"run.folder={tmp_path}", buckets])
        make_ready(config)
        sources = training_sources(config, Storage())
        assert sources[0].index.in_buckets.sum() == 56
        note_data(sources, config, resumed=True)
        told.append("the order of samples is another one" in caplog.text)
    assert told == [False, False, True]


def test_a_run_keeps_to_the_index_that_it_began_with(tiny_diffusion: list[str], bare: Path, tmp_path: Path) -> None:
    """Also where its source has one, which others write again: else a resumed run would have another order."""
    build_index(str(bare), str(bare), Storage())
    config = composed([*tiny_diffusion, f"data.train={bare}", f"run.folder={tmp_path / 'run'}"])
    make_ready(config)
    [before] = training_sources(config, Storage())
    shutil.copy(bare / "00000.tar", bare / "added.tar")
    build_index(Storage().check(str(bare)), str(bare), Storage())
    make_ready(config)
    [after] = training_sources(config, Storage())
    assert after.index.fingerprint == before.index.fingerprint and _all(after.index) == _all(before.index)
    own = list((tmp_path / "run" / "index").rglob("*"))
    assert not [path for path in own if path.suffix == ".npz"], "offsets stay where they are"
    assert len(Index.load(str(bare), Storage())) == 76


def test_a_run_tells_what_its_index_leaves_out(
    tiny_diffusion: list[str], bare: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (bare / "bad.tar").write_bytes(b"no tar")
    build_index(str(bare), str(bare), Storage())
    caplog.clear()
    make_ready(composed([*tiny_diffusion, f"data.train={bare}", f"run.folder={tmp_path / 'run'}"]))
    assert f"data.train={bare}: its index leaves out 1 shards" in caplog.text and "bad.tar" in caplog.text


def test_a_cache_folder_that_cannot_be_made_is_told_before_ranks_start(
    tiny_diffusion: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    cache = f"data.storage.cache_folder={tmp_path}/file/cache"
    with pytest.raises(DataError, match=r"cache_folder=.*/file/cache cannot be made"):
        make_ready(composed([*tiny_diffusion, cache, f"run.folder={tmp_path / 'run'}"]))
