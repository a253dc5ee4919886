"""Tar headers of every format, and of shards that mean harm: reading ends, in samples or in an error that names it."""

from __future__ import annotations

import hashlib
import io
import logging
import random
import tarfile
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import pytest
from made_files import make_png, make_shard, make_tar

from data.errors import DataError
from data.index import Index
from data.indexing import build_index
from data.loader import Loader
from data.mixture import IndexedSource
from data.offsets import Entry, Offsets
from data.stream import Storage
from data.tar_headers import read_headers


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


def header(kind: bytes, size: int, name: str = "odd.png", content: bytes = b"") -> bytes:
    """A header that claims this size, below zero too, and what follows it."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[156:157] = kind
    block[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    if kind == tarfile.GNUTYPE_SPARSE:
        block[483:495] = b"77777777777\0"  # what it claims to be with its holes: 8 GiB
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + content + bytes(-len(content) % 512)


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, pax: Mapping[str, str] | None = None
) -> bytes:
    """One member with its headers, as PAX has them where its name or these fields need it."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.pax_headers = kind, len(content), dict(pax or {})
    info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + content + bytes(-len(content) % 512)


def pax(content: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """An extended header of these bytes."""
    return header(kind, len(content), content=content)


LATIN = tarfile.TarInfo("caf\udce9.png").tobuf(tarfile.USTAR_FORMAT)
SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "odd.png", "GNU.sparse.realsize": "9"}
ODD: dict[str, tuple[bytes, list[str]]] = {
    "a link": (member("odd.png", kind=tarfile.SYMTYPE), []),
    "a hard link": (member("odd.png", kind=tarfile.LNKTYPE), []),
    "a device": (member("odd.png", kind=tarfile.CHRTYPE), []),
    "a pipe": (member("odd.png", kind=tarfile.FIFOTYPE), []),
    "a folder": (member("odd.png", kind=tarfile.DIRTYPE), []),
    "sparse, as GNU has it": (header(tarfile.GNUTYPE_SPARSE, 0), []),
    "sparse, as PAX 0.1 has it": (member("odd.png", b"abc", pax={"GNU.sparse.map": "0,3", "GNU.sparse.size": "9"}), []),
    "sparse, as PAX 1.0 has it": (member("odd.png", b"1\n0\n3\n".ljust(512, b"\0") + b"abc", pax=SPARSE), []),
    "a way out": (member("../../odd.png"), ["../../odd"]),
    "a way from the root": (member("/etc/odd.png"), ["/etc/odd"]),
    "no bytes": (member("odd.png"), ["odd"]),
    "nothing before the dot": (member(".png"), [""]),
    "no extension": (member("odd"), ["odd"]),
    "the same name twice": (member("odd.png", b"a") + member("odd.png", b"b"), ["odd", "odd"]),
    "the key of another": (member("odd.png") + member("x.png") + member("odd.png"), ["odd", "x", "odd"]),
    "a long name, by PAX": (member("ö" * 150 + ".png"), ["ö" * 150]),
    "a long name, by GNU": (header(b"L", 304, content=b"x" * 300 + b".png") + header(b"0", 0), ["x" * 300]),
    "an endless name": (member("y" * 4000 + ".png"), ["y" * 495 + "-" + hashlib.sha256(b"y" * 4000).hexdigest()[:16]]),
    "a name that is no text": (LATIN, ["caf\\xe9"]),
    "what ends names, and moves a cursor": (member("odd.png", pax={"path": "o\0d\x1b[2J.p\0g"}), ["o\\x00d\\x1b[2J"]),
    "one name for all": (pax(b"17 path=each.png\n", tarfile.XGLTYPE) + member("odd.png"), ["each"]),
}
"""Members and the keys of the samples that they make, between good samples."""
DAMAGE: dict[str, bytes] = {
    "a size below zero": header(b"0", -512),
    "a PAX size below zero": member("odd.png", b"abc", pax={"size": "-1024"}),
    "an extended header below zero": header(b"x", -512),
    "an extended header of a tebibyte": header(b"x", 1 << 40),
    "a name of a tebibyte": header(b"L", 1 << 40),
    "a name of megabytes": header(b"L", 4 << 20, content=b"x" * (4 << 20)),
    "extended headers of extended headers": header(b"x", 0) * 3000,
    "a PAX record of another length": pax(b"0 path=x\n9999999 y=1"),
    "digits without end": pax(b"7" * 8000),
    "sparse without a map": member("odd.png", b"junk", pax=SPARSE),
    "sparse with billions of parts": member("odd.png", b"9999999999\n", pax=SPARSE),
    "sparse with a map of letters": member("odd.png", b"abc", pax={"GNU.sparse.map": "a,b"}),
    "fields for all without end": b"".join(
        pax(b"%d k%04d=%s\n" % (2010, n, b"v" * 2000), tarfile.XGLTYPE) for n in range(100)
    ),
    "a size of an exbibyte": header(b"0", 1 << 60),
}
"""After which nothing can be read."""


def between(odd: bytes, number: int) -> bytes:
    """A shard with a good sample before and one behind."""
    good = [make_shard(2 * number + n, 1) for n in (0, 1)]
    return good[0].rstrip(b"\0") + bytes(-len(good[0].rstrip(b"\0")) % 512) + odd + good[1]


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_member_harms_no_other(kind: str) -> None:
    odd, keys = ODD[kind]
    data = between(odd, 0)
    found = read_headers(io.BytesIO(data), len(data), "x")
    if kind != "one name for all":
        assert [entry.key for entry in found] == ["000000", *keys, "000001"]
        assert all(len(found[n].members) == 3 for n in (0, -1))
    assert list(Offsets.from_sidecar(Offsets.of(found).to_sidecar(), "x")) == found
    whole = read_headers(io.BytesIO(data), len(data), "x", checksums=True)
    assert [(entry.key, entry.fault) for entry in whole] == [(entry.key, None) for entry in found]


@pytest.mark.parametrize("kind", DAMAGE)
def test_after_a_damaged_header_what_was_before_it_is_left(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    data, began = between(DAMAGE[kind], 0), time.process_time()
    found = read_headers(io.BytesIO(data), len(data), "the shard")
    assert found[0].key == "000000" and len(found[0].members) == 3
    assert found[-1].fault == "truncated" and len(found) <= 2
    assert len(found) == 2 or "the shard: no tar header at byte" in caplog.text
    alone = DAMAGE[kind] + bytes(1024)
    if len(found) == 1:
        with pytest.raises(DataError, match="the shard is no readable tar"):
            read_headers(io.BytesIO(alone), len(alone), "the shard")
    assert time.process_time() - began < 1


@pytest.mark.parametrize("round", range(4))
def test_whatever_bytes_there_are_reading_ends_and_members_lie_within(round: int) -> None:
    chooser = random.Random(round)
    kinds = [odd for odd, _ in ODD.values()] + list(DAMAGE.values())
    whole = [between(odd, 0) for odd in kinds if len(odd) < 1 << 16]
    for _ in range(100):
        data = bytearray(chooser.choice(whole))
        for _ in range(chooser.randrange(1, 30)):
            data[chooser.randrange(len(data))] = chooser.choice(b"\0\x80\xff0179 =\nxLSg")
        if chooser.random() < 0.3:
            del data[chooser.randrange(len(data)) :]
        try:
            found = read_headers(io.BytesIO(bytes(data)), len(data), "the shard")
        except DataError as error:
            assert "the shard" in str(error)
            continue
        for entry in found:
            for place in entry.members.values():
                assert place.offset >= 512 and place.size >= 0
                assert entry.fault or place.offset + place.size <= len(data)
        assert list(Offsets.from_sidecar(Offsets.of(found).to_sidecar(), "x")) == [_plain(entry) for entry in found]


def _plain(entry: Entry) -> Entry:
    return Entry(entry.key, entry.members, entry.headers_crc32, entry.fault)


def test_names_take_bounded_memory(caplog: pytest.LogCaptureFixture) -> None:
    """Offsets are arrays: the longest key takes its length for each, and an extension a column."""
    odd = member(f"{'z' * 4000}.png") + b"".join(member(f"{n}.x{n}") for n in range(300))
    found = read_headers(io.BytesIO(odd), len(odd), "the shard")
    offsets = Offsets.of(found)
    assert offsets.keys.dtype.itemsize <= 512 and len(offsets.members) == 64
    assert "the shard: 237 members have further extensions than the first 64" in caplog.text


def test_an_epoch_of_shards_that_mean_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All good samples that can be reached are trained on, and nothing is written or read anywhere else."""
    caplog.set_level(logging.CRITICAL)
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, odd in enumerate([*(odd for odd, _ in ODD.values()), *DAMAGE.values()]):
        (folder / f"{number:05d}.tar").write_bytes(between(odd, number))
    index = Index.load(build_index(str(folder), str(tmp_path / "index"), Storage()), Storage())
    batches = Loader([IndexedSource(index)], Storage(), 3, 8, {}, 4, 4, max_bad_share=1.0).batches()
    seen = set[str]()
    reasons = set[str]()
    for batch in islice(batches, -(-len(index) // 4)):
        seen.update(batch.captions)
        reasons.update(fault.reason for fault in batch.faults)
    batches.close()
    behind = {f"picture {2 * number + 1}" for number in range(len(ODD) - 1)}  # one name for all takes theirs
    assert seen >= behind
    assert reasons <= {"truncated", "undecodable", "no_image"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "shards"]
