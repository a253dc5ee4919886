"""Which part of a picture a model sees."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Box = tuple[float, float, float, float]
"""left, top, right, bottom."""
Shape = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True, slots=True)
class View:
    """A part of a picture of `height` x `width` pixels, mirrored or not. box: its edges in pixels of the picture."""

    height: int
    width: int
    box: Box
    mirrored: bool = False

    def cut(self, picture: NDArray[np.uint8], size: int, resampling: Image.Resampling) -> NDArray[np.uint8]:
        """The part of uint8 [height, width, ...], scaled to a square [size, size, ...]."""
        return self.cut_to(picture, (size, size), resampling)

    def cut_to(self, picture: NDArray[np.uint8], shape: Shape, resampling: Image.Resampling) -> NDArray[np.uint8]:
        """The part of uint8 [height, width, ...], scaled to [*shape, ...]."""
        if self.box != (0, 0, shape[1], shape[0]):
            picture = np.array(Image.fromarray(picture).resize((shape[1], shape[0]), resampling, box=self.box))
        return np.ascontiguousarray(picture[:, ::-1] if self.mirrored else picture)

    def spare(self, shape: Shape) -> float:
        """Pixels of the picture, along a side, for each pixel of the part at [*shape]; the fewer of both sides."""
        left, top, right, bottom = self.box
        return min((right - left) / shape[1], (bottom - top) / shape[0])

    def on_grid(self, step: int) -> View:
        """The view whose edges are the nearest multiples of `step` within the picture, at least one step apart."""
        left, right = _on_grid(self.box[0], self.box[2], self.width, step)
        top, bottom = _on_grid(self.box[1], self.box[3], self.height, step)
        return replace(self, box=(left, top, right, bottom))

    @property
    def share(self) -> Box:
        """The part's edges as shares of the picture's sides; of the mirrored picture, where the view is mirrored."""
        left, right = self.box[0] / self.width, self.box[2] / self.width
        if self.mirrored:
            left, right = 1 - right, 1 - left
        return left, self.box[1] / self.height, right, self.box[3] / self.height

    def within(self, box: Box) -> Box | None:
        """A box in pixels of the picture, as shares of the view's sides, cut off at its edges; None outside of it."""
        left, top, right, bottom = self.box
        across, down = right - left, bottom - top
        edges = [(box[0] - left) / across, (box[1] - top) / down, (box[2] - left) / across, (box[3] - top) / down]
        x_0, y_0, x_1, y_1 = (min(max(edge, 0.0), 1.0) for edge in edges)
        if x_0 >= x_1 or y_0 >= y_1:
            return None
        return (1 - x_1, y_0, 1 - x_0, y_1) if self.mirrored else (x_0, y_0, x_1, y_1)


def _on_grid(start: float, stop: float, side: int, step: int) -> tuple[int, int]:
    """The length is rounded alone, so that it doesn't depend on the place."""
    steps = min(max(1, round((stop - start) / step)), side // step)
    first = min(round(start / step), side // step - steps)
    return first * step, (first + steps) * step


def middle(height: int, width: int, size: int) -> View:
    """The middle of a picture whose shorter side is scaled to `size`."""
    return _view(height, width, (size, size), 1.0, 0.5, 0.5, mirrored=False)


def chosen(
    height: int,
    width: int,
    size: int,
    scaled_side: int,
    flip: bool,
    generator: np.random.Generator,
    shape: Shape | None = None,
) -> View:
    """The part of a picture that a sample trains on.

    size: of the square in pixels, after the picture's shorter side was scaled to scaled_side, which is at least size.
    Equal, the middle is taken; else the place is drawn. shape: of a rectangle in the square's place, for which the
    picture is scaled until it covers it, and then by scaled_side / size. flip: mirror half of the pictures.
    """
    across, down = (0.5, 0.5) if scaled_side == size else generator.random(2)
    mirrored = flip and generator.random() < 0.5
    return _view(height, width, shape or (size, size), scaled_side / size, across, down, mirrored)


def _view(height: int, width: int, shape: Shape, room: float, across: float, down: float, mirrored: bool) -> View:
    """room: of the scaled picture around the part, 1 where it just covers it. across, down: where the part lies in it,
    0 at the left or top edge, 1 at the right or bottom."""
    if (height, width) == shape and room == 1:
        return View(height, width, (0, 0, width, height), mirrored)
    # rounded, as a scaled side that was divided by the size isn't always itself again when multiplied
    scale = max(round(side * room) / of for side, of in zip(shape, (height, width), strict=True))
    rest_x = max(shape[1], round(width * scale)) - shape[1]
    rest_y = max(shape[0], round(height * scale)) - shape[0]
    left, top = rest_x * across / scale, rest_y * down / scale
    right, bottom = left + shape[1] / scale, top + shape[0] / scale
    return View(
        height, width, (max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)), mirrored
    )
