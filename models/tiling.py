"""Decoding in overlapping tiles, so that the memory needed grows with the tile and not with the image."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor


def decode_tiled(decode: Callable[[Tensor], Tensor], z: Tensor, downsampling: int, tile: int, overlap: int) -> Tensor:
    """Images of latents z, float [B, C, h, w], of any size: [B, channels, f*h, f*w], f = downsampling.

    decode: maps latents [1, C, tile, tile], or less where z is smaller, to images f times as large. It is given one
    tile of one image at a time, so beyond the result this takes the memory of decoding a single tile.
    tile, overlap: in latent pixels; neighbours share at least `overlap`, which is at most half a tile. A neighbour
    gives way to the other, linearly, in the middle half of what they share; the outer quarters, which the tile's edge
    may have spoilt, are left out.

    A latent that fits into one tile is decoded as if untiled. A larger one is exactly as if untiled where `decode`
    is local and a quarter of the overlap covers how far it sees. First stages aren't local: group normalisation and
    attention see a tile where they would see the whole image, so contrast and colours drift a little from tile to
    tile, without seams. Raises ValueError when tile or overlap is out of range.
    """
    if tile < 1 or not 0 <= overlap <= tile // 2:
        raise ValueError(
            f"tile={tile}, overlap={overlap}: give a tile of 1 or more and an overlap of at most half of it"
        )
    if max(z.shape[-2:]) <= tile:
        return torch.cat([decode(image) for image in z.split(1)])
    images: Tensor | None = None  # allocated when the first tile tells channels and dtype
    height, width = z.shape[-2:]
    for number in range(len(z)):
        for top, rows in _tiles(height, tile, overlap, downsampling):
            for left, columns in _tiles(width, tile, overlap, downsampling):
                part = decode(z[number : number + 1, :, top : top + tile, left : left + tile])[0]  # [c, f*tile, f*tile]
                if images is None:
                    images = part.new_zeros(len(z), len(part), downsampling * height, downsampling * width)
                y, x = downsampling * top, downsampling * left
                place = images[number, :, y : y + part.shape[-2], x : x + part.shape[-1]]
                place.addcmul_(part, (rows[:, None] * columns).to(part))
    assert images is not None
    return images


def _tiles(size: int, tile: int, overlap: int, downsampling: int) -> Iterator[tuple[int, Tensor]]:
    """First latent pixel of each tile along a side of `size`, with the weight of each of its image pixels, float64.

    The weights of all tiles sum to one at every pixel.
    """
    tile = min(tile, size)
    count = 1 if size == tile else math.ceil((size - overlap) / (tile - overlap))
    starts = [round(i * (size - tile) / max(1, count - 1)) for i in range(count)]
    pixels = torch.arange(downsampling * size, dtype=torch.float64) + 0.5
    ramp = max(downsampling * overlap / 2, 1e-9)  # a step where nothing is shared
    # From 0 to 1 across the middle of what a tile shares with the one before; all ones for the first, zeros at the end.
    middles = [downsampling * (before + tile + start) / 2 for before, start in pairwise(starts)]
    shares = [torch.ones_like(pixels), *(((pixels - m) / ramp + 0.5).clamp(0, 1) for m in middles)]
    for start, share, following in zip(starts, shares, [*shares[1:], torch.zeros_like(pixels)], strict=True):
        yield start, (share - following)[downsampling * start : downsampling * (start + tile)]
