"""`ldm prepare index`, as a user types it."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from data.index import Index
from data.stream import Storage
from tests.conftest import finish, ldm


def test_shards_of_others_become_an_index_beside_them(squares: Path, tmp_path: Path) -> None:
    for shard in (squares / "train").glob("*.tar"):
        shutil.copy(shard, tmp_path)
    buckets = "buckets={image_size:32,step:8,largest_aspect:2}"
    status, _, err = finish(ldm("prepare", "index", f"url={tmp_path}", "checksums=true", buckets))
    assert status == 0, err
    assert f"index {tmp_path}: 56 samples in 3 shards" in err
    listed = json.loads((tmp_path / "index.json").read_text())["shardlist"]
    assert [entry["nsamples"] for entry in listed] == [20, 20, 16]
    built, prepared = Index.load(str(tmp_path), Storage()), Index.load(str(squares / "train"), Storage())
    assert built.in_buckets.tolist() == [[0, 20, 0], [0, 20, 0], [0, 16, 0]]
    assert [built.sample(n)[1] for n in range(56)] == [prepared.sample(n)[1] for n in range(56)]


def test_what_cannot_be_is_one_message(
    squares: Path, tmp_path: Path, ldm_fails: Callable[..., tuple[str, str]]
) -> None:
    pattern = f"'url=\"{squares}/train/*.tar\"'".strip("'")
    for overrides, says in (
        ([], "url=???: "),
        ([f"url={tmp_path}"], "error: no shard (*.tar) matches"),
        ([pattern], "output=null: "),
        ([f"url={squares}/shards.txt"], "is no folder; name one for the index"),
        ([f"url={squares}/train", "bad_shards=skip"], "bad_shards=skip: choose one of replace, error"),
        ([f"url={squares}/train", "where={width:{atleast:3}}"], "where.width.atleast=3: no such condition"),
        ([f"url={squares}/train", "buckets=3"], "buckets=3: give {image_size: 512, step: 64"),
    ):
        assert says in ldm_fails("prepare", "index", *overrides)[1].splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_leaves_no_process_and_goes_on(
    number: signal.Signals, squares: Path, tmp_path: Path
) -> None:
    for copy in range(400):
        shutil.copy(squares / "train" / "00000.tar", tmp_path / f"{copy:03d}.tar")
    process = ldm("prepare", "index", f"url={tmp_path}", "processes=2")
    while process.poll() is None and not list(tmp_path.glob("*.npz")):
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    status, _, err = finish(process, 60)
    assert status in (130, -signal.SIGKILL) and "Traceback" not in err
    gone, alive = psutil.wait_procs(children, 10)
    assert gone and not alive
    assert not (tmp_path / "index.json").exists()
    status, _, err = finish(ldm("prepare", "index", f"url={tmp_path}", "processes=2"))
    assert status == 0 and "8000 samples in 400 shards" in err
