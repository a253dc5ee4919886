"""Shards of latents: what a first stage says of each sample's picture, in the picture's place.

A folder of them mirrors an index of images: its shard number k holds the samples of that index's shard number k, in
their order, bad ones too, so that the order of training (`data.order`) is the same. Of a sample all members are there
but pictures; KEY.safetensors stands for those, with the tensors "moments", half precision [K, h, w], "mirrored", the
same of the mirrored picture where the folder's key says so, "size", the picture's height and width, and "box", which
part of it that is. A sample that can't be used has one member, KEY.bad, the reason. `latents.json` is the folder's key:
see LatentsKey.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from data.errors import DataError
from data.pictures import Seen
from data.stream import Storage, join
from data.transforms import REASONS, BadSample
from data.view import Shape, View, chosen

KEY_NAME = "latents.json"
MOMENTS = "safetensors"
BAD = "bad"
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}
_VERSION = 2
_NO_IMAGE = np.empty((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class LatentsKey:
    """What a folder of latents was made of, and how.

    first_stage: SHA-256 of its weights. scale: of the latents that a model trains on, null: estimated; the moments
    themselves are unscaled. image_size: side in pixels of the squares, the middle of pictures whose shorter side was
    scaled to it. reducing_gap: see data.pictures.ImageReader. mirrored: those of mirrored pictures are there too.
    precision: one of PRECISIONS. where: conditions that the samples fulfil. samples: fingerprint of the images' index.
    """

    first_stage: str
    scale: float | None
    image_size: int
    reducing_gap: float | None
    mirrored: bool
    precision: str
    where: Mapping[str, Any]
    samples: str

    @property
    def digest(self) -> str:
        """12 hexadecimal digits, part of the shards' names: what was made otherwise is never taken for one of them."""
        content = json.dumps([_VERSION, asdict(self)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def shard_name(self, number: int) -> str:
        """The name of a shard without its extension."""
        return f"{number:05d}-{self.digest}"

    def write(self, folder: str, storage: Storage) -> None:
        """Puts the key into its folder."""
        storage.write(join(folder, KEY_NAME), (json.dumps({"version": _VERSION, **asdict(self)}, indent=1)).encode())

    @classmethod
    def read(cls, folder: str, storage: Storage) -> LatentsKey | None:
        """The key of a folder, None when it has none. Raises DataError when it can't be understood."""
        url = join(folder, KEY_NAME)
        if not storage.exists(url):
            return None
        try:
            content = json.loads(storage.read(url))
            if content.pop("version") != _VERSION:
                raise ValueError(f"another version than {_VERSION}")
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{url} is no key of latents: {error!r}. Write the latents to another folder") from error


def member_of(moments: Tensor, mirrored: Tensor | None, view: View) -> bytes:
    """The bytes that stand for a picture. moments, mirrored: half precision [K, h, w]. view: what they are of."""
    size, box = torch.tensor((view.height, view.width)), torch.tensor(view.box, dtype=torch.float64)
    tensors = {"moments": moments.contiguous(), "size": size, "box": box}
    if mirrored is not None:
        tensors["mirrored"] = mirrored.contiguous()
    return safetensors.torch.save(tensors)


class MomentsReader:
    """Reads moments in place of pictures: those of the view that would be seen of the picture itself.

    image_size: side in pixels of the squares that were encoded. flip: half of the samples are mirrored.
    """

    def __init__(self, image_size: int, flip: bool) -> None:
        self.image_size = image_size
        self.flip = flip

    def read(self, members: Mapping[str, bytes], generator: np.random.Generator, shape: Shape | None = None) -> Seen:
        """The moments, without an image. Raises BadSample for the reason that the picture was bad."""
        if BAD in members:
            reason = members[BAD].decode(errors="replace")
            raise BadSample(reason if reason in REASONS else "undecodable")  # type: ignore[arg-type]
        if MOMENTS not in members:
            raise BadSample("no_image", f"has {', '.join(sorted(members)) or 'nothing'}, and no moments")
        try:
            tensors = safetensors.torch.load(members[MOMENTS])
            (height, width), (left, top, right, bottom) = tensors["size"].tolist(), tensors["box"].tolist()
            drawn = chosen(height, width, self.image_size, self.image_size, self.flip, generator, shape)
            view = View(height, width, (left, top, right, bottom), drawn.mirrored)
            return Seen(view, _NO_IMAGE, tensors["mirrored" if view.mirrored else "moments"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise BadSample("undecodable", f"{type(error).__name__}: {error}") from error
