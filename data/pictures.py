"""What is seen of a sample's picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data.errors import DataError
from data.transforms import BadSample, EncodedImage, image_of
from data.view import Shape, View, chosen

_TOGETHER = 8
"""Images that are scaled at once: more leave the processor's cache."""
_WAITING_BYTES = 1 << 20
"""The largest image that waits for others of its size."""


@dataclass(frozen=True, slots=True)
class Seen:
    """view: of the picture. image: uint8 [H, W, 3], that view; [0, 0, 3] where only its moments are known.
    moments: what a first stage said of it, half precision [K, h, w]; else None. scaled_to: what `scaled` makes of the
    image, which is not mirrored yet; None: it is ready.
    """

    view: View
    image: NDArray[np.uint8]
    moments: Tensor | None = None
    scaled_to: Shape | None = None


class PictureReader(Protocol):
    """Finds the picture among a sample's members, or what stands for it."""

    def read(self, members: Mapping[str, bytes], generator: np.random.Generator, shape: Shape | None = None) -> Seen:
        """What is seen, for `scaled`; the view is drawn from the generator, and nothing else. shape: of the view, None:
        the reader's square. Raises BadSample."""
        ...


class ImageReader:
    """Decodes pictures and cuts squares out of them, or rectangles of the shapes that are asked for.

    image_size: side of the squares in pixels. scaled_side, flip: see `data.view.chosen`. smallest_side: smaller
    pictures (in pixels) are bad samples. max_pixels: so are larger ones.

    reducing_gap: None: views are what Pillow's Lanczos filter makes of the picture, exactly. A number, 1 or more, for
    speed: JPEGs are decoded at 1/2, 1/4 or 1/8 of their size as long as so many of their pixels are left, along a side,
    for each one that is wanted. Views that make pictures smaller then lie on whole decoded pixels, and torch's Lanczos
    filter scales them: within two levels of Pillow's, of 0 to 255, where nothing was reduced.
    """

    def __init__(
        self,
        image_size: int,
        scaled_side: int,
        flip: bool,
        smallest_side: int,
        max_pixels: int,
        reducing_gap: float | None = None,
    ) -> None:
        if reducing_gap is not None and not reducing_gap >= 1:
            raise DataError(f"reducing_gap={reducing_gap} must be 1 or more, or null: pictures would lose resolution")
        self.image_size = image_size
        self.scaled_side = scaled_side
        self.flip = flip
        self.smallest_side = smallest_side
        self.max_pixels = max_pixels
        self.reducing_gap = reducing_gap

    def read(self, members: Mapping[str, bytes], generator: np.random.Generator, shape: Shape | None = None) -> Seen:
        """The view as an image."""
        extension, data = image_of(members)
        picture = EncodedImage(data, self.max_pixels, extension)
        if min(picture.height, picture.width) < self.smallest_side:
            raise BadSample("too_small", f"{picture.width} x {picture.height} is below {self.smallest_side}")
        view = chosen(picture.height, picture.width, self.image_size, self.scaled_side, self.flip, generator, shape)
        shape = shape or (self.image_size, self.image_size)
        if self.reducing_gap is None:
            return Seen(view, view.cut_to(picture.decode(), shape, Image.Resampling.LANCZOS))
        spare = view.spare(shape)
        reduction = picture.reduction(spare / self.reducing_gap)
        if spare > 1:
            view = view.on_grid(reduction)
        return _part(picture.decode(reduction), view, shape, reduction)


def scaled(seen: Sequence[Seen]) -> list[Seen]:
    """All of them with their images ready; one by one they would be the same, bit for bit.

    Those of one size are scaled at once, as torch computes its filter anew for each call, which is a third of the time
    at 224x224 to 256x256.
    """
    found = list(seen)
    alike: dict[tuple[tuple[int, ...], Shape], list[int]] = {}
    for place, each in enumerate(seen):
        if each.scaled_to is not None:
            alike.setdefault((each.image.shape, each.scaled_to), []).append(place)
    for (_, shape), places in alike.items():
        for first in range(0, len(places), _TOGETHER):
            some = places[first : first + _TOGETHER]
            images = _by_torch([seen[place].image for place in some], shape)
            for place, image in zip(some, images, strict=True):
                found[place] = replace(seen[place], image=_turned(image, seen[place].view), scaled_to=None)
    return found


def _part(pixels: NDArray[np.uint8], view: View, shape: Shape, reduction: int) -> Seen:
    """The view of a picture that was reduced; still to be scaled where that is soon done."""
    edges = [edge / reduction for edge in view.box]
    if not all(edge.is_integer() for edge in edges):  # of a small picture
        return Seen(view, view.cut_to(pixels, shape, Image.Resampling.LANCZOS))
    left, top, right, bottom = map(int, edges)
    part = np.ascontiguousarray(pixels[top:bottom, left:right])
    if part.shape[:2] == shape:
        return Seen(view, _turned(part, view))
    if part.nbytes <= _WAITING_BYTES:
        return Seen(view, part, scaled_to=shape)
    return Seen(view, _turned(_by_torch([part], shape)[0], view))


def _by_torch(images: Sequence[NDArray[np.uint8]], shape: Shape) -> NDArray[np.uint8]:
    """Images [H, W, 3] of one size scaled to [N, *shape, 3]."""
    # of strides by which torch knows that colours lie together: it takes 2/3 of the time then
    together = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return F.interpolate(together, shape, mode="lanczos", antialias=True).permute(0, 2, 3, 1).numpy()


def _turned(image: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    """Mirrored where the view is."""
    return np.ascontiguousarray(image[:, ::-1] if view.mirrored else image)
