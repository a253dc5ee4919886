"""Damaged samples of every kind: training goes on, names them, counts them; too many of them end it."""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import finish, ldm

REASONS = {
    "not_utf8": "latin",
    "undecodable": "noise",
    "no_caption": "mute",
    "animated": "moving",
    "too_many_pixels": "vast",
    "truncated": "torn",
}
"""Key of the sample with each fault."""
STEPS = 8  # of 8 samples: one epoch, so that every sample is met
VAST = 20_000


def picture(kind: str = "PNG", frames: int = 1) -> bytes:
    """A small picture, or several in one file."""
    drawn = [Image.fromarray(np.full((32, 32, 3), 40 * (1 + frame), np.uint8)) for frame in range(frames)]
    buffer = io.BytesIO()
    if frames == 1:
        drawn[0].save(buffer, kind)
    else:
        drawn[0].save(buffer, kind, save_all=True, append_images=drawn[1:])
    return buffer.getvalue()


def vast_png() -> bytes:
    """A white RGB picture of VAST x VAST pixels: 1.2 GB when decoded, about a megabyte here.

    Its rows are compressed once for a band of them; a full flush makes the compressed band repeatable.
    """
    rows, bands = 200, VAST // 200
    band = (b"\0" + b"\xff" * 3 * VAST) * rows
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    deflate.compress(b"")
    packed = deflate.compress(band) + deflate.flush(zlib.Z_FULL_FLUSH)
    checksum = 1
    for _ in range(bands):
        checksum = zlib.adler32(band, checksum)
    stream = b"\x78\x9c" + packed * bands + deflate.flush() + struct.pack(">I", checksum)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", VAST, VAST, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def damaged_shard() -> bytes:
    """Eight samples: two good ones and one of each fault; the last member is cut off in its middle."""
    caption = b"a grey square"
    members = {
        "good.png": picture(),
        "good.txt": caption,
        "latin.png": picture(),
        "latin.txt": "ein größeres Bild".encode("latin-1"),
        "noise.png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        "noise.txt": caption,
        "mute.png": picture(),
        "moving.jpg": picture("GIF", frames=3),
        "moving.txt": caption,
        "vast.png": vast_png(),
        "vast.txt": caption,
        "fine.png": picture(),
        "fine.txt": caption,
        "torn.txt": caption,
        "torn.png": picture() * 20,
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        end = tar.offset
    return buffer.getvalue()[: end - 1024]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damaged") / "00000.tar"
    path.write_bytes(damaged_shard())
    return path


def test_the_vast_picture_is_what_it_says() -> None:
    content = vast_png()
    assert len(content) < 2_000_000
    unlimited = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(io.BytesIO(content)) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (VAST, VAST))
    finally:
        Image.MAX_IMAGE_PIXELS = unlimited


def test_training_goes_on_and_accounts_for_them(
    tiny_diffusion: list[str], squares: Path, damaged: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    status, _, err = finish(
        ldm(
            *("train", *tiny_diffusion, f"data.train=[{squares}/train,{damaged}]", "data.max_bad_share=0.5"),
            *("run.ranks=1", f"steps={STEPS}", f"run.folder={folder}"),
            environment={"OMP_NUM_THREADS": "1"},
        )
    )
    assert status == 0, err
    assert "Traceback" not in err
    for reason, key in REASONS.items():
        assert f"bad sample ({reason}): {key} in {damaged}, replaced" in err
    quarantined = (folder / "bad_samples" / "rank-00000.jsonl").read_text().splitlines()
    assert {fault["reason"]: fault["key"] for fault in map(json.loads, quarantined)} == REASONS
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    found = {name.removeprefix("data/bad/"): count for name, count in rows[-1].items() if name.startswith("data/bad/")}
    assert found.keys() == REASONS.keys()
    assert all(count >= 1 for count in found.values())
    told = re.search(r"bad samples replaced so far: (.*)", err)
    assert told and told[1] == ", ".join(f"{found[reason]} {reason}" for reason in sorted(found))
    if not torch.cuda.is_available():
        assert max(row["memory/peak_gib"] for row in rows[1:]) < 2.0, "the vast picture was decoded"
    report = (folder / "report.html").read_text()
    for reason in REASONS:
        assert re.search(rf"{reason}|{reason.replace('_', ' ')}", report), f"the report doesn't tell of {reason}"


@pytest.mark.slow
def test_too_many_of_them_end_the_run_with_one_message(
    tiny_diffusion: list[str], squares: Path, damaged: Path, tmp_path: Path
) -> None:
    status, _, err = finish(
        ldm(
            *("train", *tiny_diffusion, f"data.train=[{squares}/train,{damaged}]", "data.max_bad_share=0.02"),
            *("run.ranks=2", "steps=100", f"run.folder={tmp_path / 'run'}"),
            environment={"OMP_NUM_THREADS": "1"},
        )
    )
    assert status == 2, err
    assert "Traceback" not in err
    [message] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert err.splitlines()[-1] == message
    assert re.match(r"error: \d+ of 64 samples are bad \(\{.*\}\), above max_bad_share=0.02; the last: ", message)
    assert "Mend the shards or raise the limit" in message
