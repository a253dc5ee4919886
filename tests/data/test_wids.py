"""Our indices are those of wids, which reads samples by number, and its are ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import wids

from data.index import Index
from data.indexing import build_index
from data.prepare import prepare
from data.stream import Storage
from tests.data.test_prepare import Numbers, make_png


def read(index: str, cache: Path) -> wids.ShardListDataset:
    """By wids, whose samples are files by their extensions, as bytes."""
    return wids.ShardListDataset(index, cache_dir=str(cache), keep=True, transformations=[])


def test_wids_reads_what_is_prepared(tmp_path: Path) -> None:
    prepare(Numbers(), str(tmp_path / "shards"), Storage(), 3)
    samples = read(str(tmp_path / "shards/train/index.json"), tmp_path)
    numbers = [1, 2, 3, 5, 6, 7, 9]
    assert [samples[n]["__key__"] for n in range(len(samples))] == [f"{n:02d}" for n in numbers]
    for position, number in enumerate(numbers):
        sample = samples[position]
        assert sample[".png"].read() == make_png(number)
        assert sample[".txt"].read().decode() == f"number {number} ü"
        assert json.loads(sample[".json"].read())["key"] == f"{number:02d}"


def test_wids_reads_by_an_index_that_is_built(shards: Callable[..., str], tmp_path: Path) -> None:
    folder = shards(3, 2)
    samples = read(build_index(folder, str(tmp_path / "index"), Storage()), tmp_path)
    assert [samples[n]["__key__"] for n in range(len(samples))] == [f"{n:06d}" for n in range(5)]


def test_an_index_by_wids_is_enough(shards: Callable[..., str]) -> None:
    folder = shards(3, 2)
    bare = Index.load(folder, Storage())
    names = sorted(path.name for path in Path(folder).glob("*.tar"))
    command = [sys.executable, "-m", "wids.wids_index", "create", "--output", "index.json", "--name", "squares", *names]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    for urls in (folder, f"{folder}/index.json", [f"{folder}/index.json"]):
        index = Index.load(urls, Storage())
        assert [index.sample(n) for n in range(5)] == [bare.sample(n) for n in range(5)]
