"""Pictures and tar shards for tests, made on the spot."""

import io
import json
import tarfile
from collections.abc import Mapping

import numpy as np
from PIL import Image


def make_png(number: int, size: int = 8) -> bytes:
    """A picture that is different for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_tar(members: Mapping[str, bytes]) -> bytes:
    """A tar file of these members, in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def make_shard(first: int, count: int) -> bytes:
    """A shard of good samples; the caption of sample n is "picture n"."""
    members: dict[str, bytes] = {}
    for number in range(first, first + count):
        members[f"{number:06d}.png"] = make_png(number)
        members[f"{number:06d}.txt"] = f"picture {number}".encode()
        members[f"{number:06d}.json"] = json.dumps({"key": number}).encode()
    return make_tar(members)
