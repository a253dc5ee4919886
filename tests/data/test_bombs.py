"""Samples that would fill a worker's memory or time: they are bad samples like others, and what it takes is bounded."""

from __future__ import annotations

import io
import json
import struct
import time
import zlib
from itertools import islice
from pathlib import Path

import pytest
from made_files import make_png, make_tar
from PIL import Image

from data.clip_tokenizer import ClipTokenizer
from data.index import Index
from data.inputs.caption import Caption
from data.loader import Loader
from data.mixture import IndexedSource
from data.prepare import members_of
from data.sources import Sample
from data.stream import Storage
from data.tokenizer import BertTokenizer
from tests.benchmarks.worker_memory import in_fresh_process

GOOD = {"png": make_png(1), "txt": b"picture 1"}


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG file of these chunks."""
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def png_head(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


def wide_jpeg() -> bytes:
    """A small JPEG whose header claims 65,000 x 65,000 pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    return bytes(data)


def wide_gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "GIF")
    data = bytearray(buffer.getvalue())
    data[6:10] = struct.pack("<HH", 65000, 65000)
    return bytes(data)


TEXT = zlib.compress(bytes(200 << 20), 9)  # a fifth of a megabyte
BOMBS: dict[str, tuple[dict[str, bytes], set[str]]] = {
    "a .json of megabytes": ({"json": b"[" + b"[]," * (1 << 20) + b"[]]"}, {"too_many_bytes"}),
    "a .json of brackets": ({"json": b"[" * 900_000}, {"undecodable"}),
    "a .json of digits": ({"json": b"1" * 900_000}, {"undecodable"}),
    "a caption of megabytes": ({"txt": b"a " * (1 << 20)}, {"too_many_bytes"}),
    "a caption of one word": ({"txt": "äx".encode() * 300_000}, set()),
    "half a character": ({"txt": b"", "json": json.dumps({"caption": "half \ud83d"}).encode()}, set()),
    "a PNG of terapixels": ({"png": png_of([png_head(1 << 30, 1 << 30), (b"IDAT", b"")])}, {"too_many_pixels"}),
    "a JPEG of gigapixels": ({"png": wide_jpeg()}, {"too_many_pixels"}),
    "a GIF of gigapixels": ({"png": wide_gif()}, {"too_many_pixels"}),
    "a PNG with a profile of hundreds of megabytes": (
        {"png": png_of([png_head(8, 8), (b"iCCP", b"p\0\0" + TEXT), (b"IDAT", b""), (b"IEND", b"")])},
        {"undecodable", "truncated"},
    ),
    "a PNG with a text of hundreds of megabytes": (
        {"png": png_of([png_head(8, 8), (b"zTXt", b"t\0\0" + TEXT), (b"IDAT", b""), (b"IEND", b"")])},
        {"undecodable", "truncated"},
    ),
    "a PNG whose rows never end": (
        {"png": png_of([png_head(8, 8), (b"IDAT", TEXT), (b"IEND", b"")])},
        set(),
    ),
}
"""Members that replace those of a good sample, and what is wrong with it, or nothing."""


@pytest.fixture(scope="module")
def inputs() -> dict[str, Caption]:
    return {"bert": Caption(BertTokenizer()), "clip": Caption(ClipTokenizer())}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_a_sample_like_others(bomb: str, tmp_path: Path, inputs: dict[str, Caption]) -> None:
    members, reasons = BOMBS[bomb]
    files = {f"good{n}.{kind}": data for n in range(3) for kind, data in GOOD.items()}
    files |= {f"bomb.{kind}": data for kind, data in (GOOD | members).items()}
    (tmp_path / "0.tar").write_bytes(make_tar(files))
    index = Index.load(str(tmp_path), Storage())
    batches = Loader([IndexedSource(index)], Storage(), 3, 8, inputs, 4, 4, max_bad_share=1.0).batches()
    began = time.process_time()
    [batch] = islice(batches, 1)
    batches.close()
    assert time.process_time() - began < 2
    assert len(batch) == 4 and batch.inputs["clip"].shape == (4, 77)
    assert {fault.key for fault in batch.faults} <= {"bomb"}
    found = {fault.reason for fault in batch.faults}
    assert found <= reasons and bool(found) == bool(reasons)


def test_what_is_no_text_in_a_source_is_written_as_text() -> None:
    members = members_of(Sample("key", b"", "png", "half \ud83d", {"note": "\ud83d"}))
    assert members["txt"] == b"half ?" and json.loads(members["json"])["note"] == "?"


def test_a_tokenizer_does_not_keep_every_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.clip_tokenizer._KEPT_WORDS", 50)
    one, other = ClipTokenizer(), ClipTokenizer()
    captions = [f"<start_of_text> w{chr(97 + n % 26)}{chr(97 + n // 26)}rd" for n in range(200)]
    for start in range(0, 200, 20):
        assert one(captions[start : start + 20]).equal(other(captions[start : start + 20]))
        other._tokenizer.cache = dict(other._special)
        assert len(one._tokenizer.cache) <= 50 + 2 * 20


@pytest.mark.slow
def test_what_a_worker_takes_is_bounded() -> None:
    for kind, row in in_fresh_process().items():
        assert row["taken"] <= row["bound"], kind
