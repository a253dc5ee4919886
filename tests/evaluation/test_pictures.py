"""Tensors become pictures without losing a pixel."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.pictures import grid, through_jpeg, to_uint8, write_png


def test_rounding_clamping_and_range() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 5)
    assert to_uint8(x).flatten().tolist() == [0, 0, 128, 255, 255]
    every_byte = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(every_byte.float() / 127.5 - 1), every_byte)


def test_png_holds_the_pixels_and_the_text(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "new" / "picture.png"
    write_png(path, image, {"Description": "ein Äpfel 🍎"})
    with Image.open(path) as read:
        assert np.array_equal(np.asarray(read), image.permute(1, 2, 0).numpy())
        assert read.text["Description"] == "ein Äpfel 🍎"  # type: ignore[attr-defined]
    assert [p.name for p in path.parent.iterdir()] == ["picture.png"]


def test_grid_places_every_picture_once() -> None:
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 2, 3) * 10
    sheet = grid(images, columns=3, gap=1)
    assert sheet.shape == (3, 2 * 2 + 1, 3 * 3 + 2)
    assert [int(sheet[0, 0, 4 * i]) for i in range(3)] == [0, 10, 20]
    assert [int(sheet[0, 3, 4 * i]) for i in range(3)] == [30, 40, 255]
    assert grid(images[:2], columns=8).shape[2] == 2 * 3 + 4  # no empty columns
    with pytest.raises(ValueError, match="at least one image"):
        grid(images[:0])


def test_jpeg_keeps_shape_and_changes_little() -> None:
    coarse = torch.rand(2, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    images = (255 * torch.nn.functional.interpolate(coarse, 16, mode="bilinear")).to(torch.uint8)
    read = through_jpeg(images)
    assert (read.shape, read.dtype) == (images.shape, torch.uint8)
    assert 0 < (read.float() - images.float()).abs().mean() < 4
