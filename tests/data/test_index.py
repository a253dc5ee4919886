import io
import json
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from made_files import make_png, make_shard, make_tar

from data.errors import DataError
from data.index import Index
from data.offsets import Member, Offsets, read_headers
from data.store import EmbeddedStore
from data.stream import Storage


def headers(data: bytes, checksums: bool = False) -> list[tuple[str, list[str], str | None]]:
    entries = read_headers(io.BytesIO(data), len(data), "the shard", checksums)
    return [(entry.key, sorted(entry.members), entry.fault) for entry in entries]


def test_members_with_the_same_name_up_to_the_first_dot_are_a_sample() -> None:
    members = {"a/0.b/1.jpg": b"", "a/0.b/1.seg.PNG": b"", "a/0.b/2.jpg": b"", "3.jpg": b"", "x/3.jpg": b""}
    assert headers(make_tar(members)) == [
        ("a/0.b/1", ["jpg", "seg.png"], None),
        ("a/0.b/2", ["jpg"], None),
        ("3", ["jpg"], None),
        ("x/3", ["jpg"], None),
    ]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_offsets_point_at_the_bytes_in_every_tar_format(kind: int) -> None:
    long_name = "é" * 40 if kind == tarfile.USTAR_FORMAT else "é" * 150
    contents = {
        f"{long_name}.txt": b"one",
        f"{long_name}.png": make_png(1),
        "2.txt": b"",
        "3.txt": bytes(513),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        tar.addfile(tarfile.TarInfo("folder/"))
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    data = buffer.getvalue()
    entries = [entry for entry in read_headers(io.BytesIO(data), len(data), "x") if entry.key != "folder/"]
    found = {
        f"{entry.key}.{extension}": data[member.offset : member.offset + member.size]
        for entry in entries
        for extension, member in entry.members.items()
    }
    assert {name: found[name] for name in contents} == contents


def test_what_is_no_plain_file_is_no_member_and_names_are_only_names() -> None:
    """Links, devices, folders, sparse files, paths out of the folder, empty members, the same name twice."""
    members = {"../../etc/1.txt": b"up", "/abs/2.txt": b"", "3.txt": b"a", "4.txt": b"b"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(f"0{number}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name, content in [*members.items(), ("4.txt", b"again")]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    data = bytearray(buffer.getvalue())
    sparse = tarfile.TarInfo("5.jpg").tobuf(tarfile.GNU_FORMAT)
    header = bytearray(sparse)
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[483:495] = b"77777777777\0"  # the size that it claims to have: 8 GiB
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[: len(data)] = bytes(header) + bytes(data)
    assert headers(bytes(data)) == [
        ("../../etc/1", ["txt"], None),
        ("/abs/2", ["txt"], None),
        ("3", ["txt"], None),
        ("4", ["txt"], None),
        ("4", ["txt"], None),
    ]
    assert headers(bytes(data), checksums=True) == headers(bytes(data))


def test_a_truncated_last_sample_is_kept_as_a_fault() -> None:
    data = make_shard(0, 3)
    [*_, last] = read_headers(io.BytesIO(data), len(data), "x")
    for cut in (
        last.members["json"].offset + 3,
        last.members["png"].offset + 3,
        last.members["txt"].offset - 100,
    ):
        found = headers(data[:cut])
        assert [fault for _, _, fault in found] == [None, None, "truncated"]


def test_a_damaged_header_is_a_fault_and_not_the_end(caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray(make_shard(0, 3))
    second = read_headers(io.BytesIO(bytes(data)), len(data), "x")[1]
    data[second.members["png"].offset - 400] ^= 0xFF  # inside the header's checksummed fields
    found = headers(bytes(data))
    assert [fault for _, _, fault in found] == ["truncated"]
    assert "no tar header at byte" in caplog.text


@pytest.mark.parametrize("data", [b"", b"no tar file at all", bytes([7]) * 5000])
def test_what_is_no_tar_is_named(data: bytes) -> None:
    with pytest.raises(DataError, match="the shard is no readable tar"):
        headers(data)


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


def test_an_index_of_wids_is_enough(shards: Callable[..., str]) -> None:
    folder = shards(3, 2)
    bare = Index.load(folder, Storage())
    listed = [{"url": f"0000{n}.tar", "nsamples": size} for n, size in enumerate((3, 2))]
    (Path(folder) / "index.json").write_text(json.dumps({"wids_version": 1, "shardlist": listed}))
    for urls in (folder, f"{folder}/index.json", [f"{folder}/index.json"]):
        index = Index.load(urls, Storage())
        assert [index.sample(n) for n in range(5)] == [bare.sample(n) for n in range(5)]


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
