"""Between loader and store things break: what arrives is the same, or the job ends with a message that says why."""

import logging
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from faulty import KINDS, FaultyProxy, WebServer

from data import stream
from data.batch import Batch
from data.errors import DataError, NotFound
from data.index import Index
from data.indexing import build_index
from data.loader import Loader
from data.mixture import IndexedSource
from data.store import EmbeddedStore
from data.stream import Storage

SHARES = {"refused": 0.05, "reset": 0.05, "truncated": 0.01, "slow": 0.02, "throttled": 0.02}
SIZES = (30, 17, 43, 30)
TIMEOUT, SLOW = 0.6, 1.5


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(stream, "_FIRST_PAUSE_SECONDS", 0.01)
    caplog.set_level(logging.ERROR)


def epoch(index: Index, storage: Storage, **options: Any) -> list[tuple[int, str, bytes]]:
    """Number, caption and pixels of every sample of an epoch, as they come; no sample may have been replaced."""
    loader = Loader([IndexedSource(index)], storage, 3, 8, {}, 4, 4, **options)
    batches = loader.batches()
    found = [row for batch in islice(batches, len(index) // 4) for row in _rows(batch)]
    batches.close()
    return found


def _rows(batch: Batch) -> Iterator[tuple[int, str, bytes]]:
    assert batch.faults == []
    for number, caption, image in zip(batch.numbers.tolist(), batch.captions, batch.images, strict=True):
        yield number, caption, image.numpy().tobytes()


@pytest.fixture
def folder(shards: Callable[..., str]) -> str:
    """Shards of 120 good samples with an index beside them."""
    folder = shards(*SIZES)
    build_index(folder, folder, Storage())
    return folder


def test_a_full_epoch_arrives_from_a_store_behind_faults(folder: str, store: EmbeddedStore) -> None:
    url = f"{store.url}/faults"
    for path in Path(folder).iterdir():
        Storage().write(f"{url}/{path.name}", path.read_bytes())
    expected = epoch(Index.load(folder, Storage()), Storage())
    assert sorted(caption for _, caption, _ in expected) == sorted(f"picture {n}" for n in range(120))
    address = urlsplit(store.endpoint_url)
    with FaultyProxy((str(address.hostname), int(address.port or 0)), SHARES, SLOW) as proxy:
        # blocks smaller than a sample and nothing kept: as many requests as there can be
        storage = Storage(proxy.url, timeout_seconds=TIMEOUT, block_bytes=2048, cache_bytes=16384)
        index = Index.load(url, storage)
        assert epoch(index, storage) == expected
        assert set(proxy.met) > set(KINDS), f"faults that were met: {proxy.met}"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_full_epoch_arrives_over_http_behind_faults(folder: str, ranges: bool) -> None:
    expected = epoch(Index.load(folder, Storage()), Storage())
    with WebServer(folder, ranges) as server, FaultyProxy(server.address, SHARES, SLOW) as proxy:
        storage = Storage(timeout_seconds=TIMEOUT, block_bytes=2048, cache_bytes=16384)
        index = Index.load(f"{proxy.url}/index.json", storage)
        assert epoch(index, storage) == expected
        assert set(proxy.met) > set(KINDS), f"faults that were met: {proxy.met}"


def test_an_index_is_built_behind_faults(folder: str, tmp_path: Path) -> None:
    with WebServer(folder, True) as server, FaultyProxy(server.address, {"reset": 0.3, "refused": 0.3}, 0) as proxy:
        urls = f"{proxy.url}/{{00000..00003}}.tar"
        index = Index.load(build_index(urls, str(tmp_path / "index"), Storage(timeout_seconds=TIMEOUT)), Storage())
        local = Index.load(folder, Storage())
        assert [index.sample(n)[1] for n in range(120)] == [local.sample(n)[1] for n in range(120)]
        assert proxy.met["reset"] and proxy.met["refused"]


def test_what_is_written_through_faults_is_whole(store: EmbeddedStore) -> None:
    contents = {f"{store.url}/written/{n}": bytes([n]) * (1000 + n) for n in range(20)}
    address = urlsplit(store.endpoint_url)
    faults = {"refused": 0.3, "reset": 0.1, "slow": 0.05}
    with FaultyProxy((str(address.hostname), int(address.port or 0)), faults, SLOW) as proxy:
        storage = Storage(proxy.url, timeout_seconds=TIMEOUT)
        for url, content in contents.items():
            storage.write(url, content)
        assert proxy.met["refused"] and proxy.met["slow"]
    assert {url: Storage().read(url) for url in contents} == contents


def test_after_a_dropped_connection_reading_goes_on_where_it_was(folder: str) -> None:
    """Within the shard: what has come isn't asked for again."""
    content = Path(folder, "00000.tar").read_bytes()
    with WebServer(folder, True) as server, FaultyProxy(server.address, {"reset": 0.3, "truncated": 0.2}, 0) as proxy:
        storage = Storage(timeout_seconds=TIMEOUT, block_bytes=2048, cache_bytes=16384)
        for start in range(0, len(content), 700):
            assert storage.read(f"{proxy.url}/00000.tar", start, start + 700) == content[start : start + 700]
        starts = [start for start, _ in server.asked]
        dropped = proxy.met["reset"] + proxy.met["truncated"]
        assert starts == sorted(starts) and len(starts) - len(set(starts)) == dropped > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_store_that_stays_down_ends_the_job_after_the_configured_time(folder: str, workers: int) -> None:
    storage = Storage(timeout_seconds=TIMEOUT, patience_seconds=1.0, block_bytes=2048, cache_bytes=16384)
    with WebServer(folder, True) as server:
        host, port = server.address
        index = Index.load(f"http://{host}:{port}/index.json", storage)
        loader = Loader([IndexedSource(index)], storage, 3, 8, {}, 4, 4, workers=workers)
        batches = loader.batches()
        next(batches)
    began = time.monotonic()
    with pytest.raises(DataError, match=rf"http://{host}:{port}/0000.*; gave up after \d+ attempts in \d\.\d s"):
        for _ in range(60):
            next(batches)
    batches.close()
    assert time.monotonic() - began > 0.3


def test_what_a_web_server_does_not_have_or_give_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"0123456789")
    with WebServer(str(tmp_path), True) as server:
        url = "http://{}:{}".format(*server.address)
        storage = Storage(block_bytes=4, cache_bytes=64)
        assert storage.read(f"{url}/there") == b"0123456789"
        assert storage.read(f"{url}/there", 3, 7) == b"3456"
        assert storage.read(f"{url}/there", 8, 30) == b"89"
        assert storage.read(f"{url}/there", 40, 50) == b""
        assert storage.exists(f"{url}/there") and not storage.exists(f"{url}/gone")
        assert storage.size(f"{url}/there") == 10
        with pytest.raises(NotFound, match=r"/gone does not exist"):
            storage.read(f"{url}/gone", 0, 4)
