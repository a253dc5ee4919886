import io
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from made_files import make_tar

from data.errors import DataError
from data.index import Index
from data.offsets import Member, Offsets
from data.store import EmbeddedStore
from data.stream import Storage
from data.tar_headers import read_headers


def test_sidecar_round_trip() -> None:
    data = make_tar({"1.png": b"abc", "1.txt": b"", "2.txt": b"x"})
    entries = read_headers(io.BytesIO(data), len(data), "x", checksums=True)
    entries[1].fault = "truncated"
    sidecar = Offsets.of(entries).to_sidecar()
    assert list(Offsets.from_sidecar(sidecar, "x")) == entries
    assert entries[0].members["png"] == Member(512, 3, 0x352441C2)
    for broken in (b"", b"[]", sidecar[:-100], sidecar[: len(sidecar) // 2]):
        with pytest.raises(DataError, match=r"side\.npz is no offsets file"):
            Offsets.from_sidecar(broken, "side.npz")


def test_headers_are_read_where_there_is_no_index(shards: Callable[..., str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = shards(3, 2)
    index = Index.load(folder, Storage())
    assert "reading the headers of 2 shards" in caplog.text
    assert index.shard_sizes == [3, 2]
    assert [index.sample(n)[1].key for n in range(5)] == [f"{n:06d}" for n in range(5)]
    assert index.sample(3)[0] == f"{folder}/00001.tar"
    with pytest.raises(IndexError, match="position=5"):
        index.sample(5)


def test_an_index_that_does_not_fit_its_shard_is_named(shards: Callable[..., str]) -> None:
    folder = shards(3)
    content = {"shardlist": [{"url": "00000.tar", "nsamples": 4}]}
    (Path(folder) / "index.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"00000\.tar holds 3 samples and its index says 4"):
        Index.load(folder, Storage()).sample(0)
    (Path(folder) / "index.json").write_text("{}")
    with pytest.raises(DataError, match=r"index\.json is no shard index"):
        Index.load(folder, Storage())


def test_a_bad_shard_is_left_out_and_all_bad_ones_are_an_error(
    shards: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = shards(3, 2)
    (Path(folder) / "00000.tar").write_bytes(b"damaged")
    assert len(Index.load(folder, Storage())) == 2
    assert "shard left out" in caplog.text and "00000.tar" in caplog.text
    (Path(folder) / "00001.tar").write_bytes(b"damaged")
    with pytest.raises(DataError, match="no sample in 2 shards"):
        Index.load(folder, Storage())


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no shard"):
        Index.load(str(tmp_path), Storage())


def test_fingerprint_follows_the_content_and_not_the_place(shards: Callable[..., str], store: EmbeddedStore) -> None:
    folder = shards(3, 2)
    storage = Storage()
    for name in ("00000.tar", "00001.tar"):
        storage.write(f"{store.url}/fingerprint/{name}", (Path(folder) / name).read_bytes())
    local, remote = Index.load(folder, storage), Index.load(f"{store.url}/fingerprint", storage)
    assert local.fingerprint == remote.fingerprint
    assert [remote.sample(n)[1] for n in range(5)] == [local.sample(n)[1] for n in range(5)]
    assert Index.load(shards(2, 3, name="other"), storage).fingerprint != local.fingerprint
