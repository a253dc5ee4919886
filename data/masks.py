"""Random holes for inpainting, as in LaMa (Suvorov et al. 2022, Sec. 2.3 and App. B): wide strokes, and boxes."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw


def random_mask(size: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """uint8 [size, size], 255 inside the holes: by even chances wide polygonal strokes, or boxes."""
    mask = Image.new("L", (size, size))
    draw = ImageDraw.Draw(mask)
    if generator.random() < 0.5:
        for _ in range(int(generator.integers(1, 6))):
            _stroke(draw, size, generator)
    else:
        for _ in range(int(generator.integers(1, 5))):
            _box(draw, size, generator)
    return np.array(mask, dtype=np.uint8)


def _stroke(draw: ImageDraw.ImageDraw, size: int, generator: np.random.Generator) -> None:
    """A bent line of up to two fifths of the side in width, with round joints."""
    x, y = generator.uniform(0, size, 2)
    width = max(1, round(generator.uniform(0.08, 0.4) * size))
    for _ in range(int(generator.integers(1, 5))):
        angle, length = generator.uniform(0, 2 * np.pi), generator.uniform(0.04, 0.8) * size
        to_x = float(np.clip(x + length * np.cos(angle), 0, size))
        to_y = float(np.clip(y + length * np.sin(angle), 0, size))
        draw.line((x, y, to_x, to_y), fill=255, width=width)
        radius = width / 2
        draw.ellipse((to_x - radius, to_y - radius, to_x + radius, to_y + radius), fill=255)
        x, y = to_x, to_y


def _box(draw: ImageDraw.ImageDraw, size: int, generator: np.random.Generator) -> None:
    width, height = (max(1, round(side)) for side in generator.uniform(0.12, 0.6, 2) * size)
    left, top = int(generator.integers(0, size - width + 1)), int(generator.integers(0, size - height + 1))
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=255)
