"""Pictures of a folder, all of them, once, on any number of ranks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.errors import EvaluationError
from evaluation.image_folder import ImageFolder
from evaluation.metrics.metric import ALONE
from tests.evaluation.networks import on_ranks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "more").mkdir()
    for i in range(7):
        name = f"{i}.png" if i % 2 else f"more/{i}.PNG"
        Image.fromarray(np.full((10, 12, 3), 30 * i, np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


@pytest.mark.parametrize(("world", "batch_size"), [(1, 7), (1, 2), (3, 2)])
def test_a_number_is_one_picture_on_any_ranks(folder: Path, world: int, batch_size: int) -> None:
    whole = next(ImageFolder(folder, 8, 7).batches())
    assert sorted(int(image.float().mean()) for image in whole.images) == [30 * i for i in range(7)]
    seen = [batch for rank in range(world) for batch in ImageFolder(folder, 8, batch_size).batches(rank, world)]
    assert sorted(torch.cat([batch.numbers for batch in seen]).tolist()) == list(range(7))
    for batch in seen:
        assert batch.images.shape[1:] == (3, 8, 8)
        assert torch.equal(batch.images, whole.images[batch.numbers])


def test_pictures_stay_as_they_are_without_a_size(folder: Path) -> None:
    assert next(ImageFolder(folder, None, 7).batches()).images.shape == (7, 3, 10, 12)
    Image.fromarray(np.zeros((9, 12, 3), np.uint8)).save(folder / "small.png")
    with pytest.raises(EvaluationError, match="give a size that all are cut to"):
        list(ImageFolder(folder, None, 8).batches())


def test_the_fingerprint_is_of_what_the_files_hold(folder: Path) -> None:
    known = ImageFolder(folder, 8, 7).fingerprint(ALONE)
    for world in (2, 3):
        found = on_ranks(world, lambda ranks: ImageFolder(folder, 8, 2).fingerprint(ranks))
        assert found == [known] * world
    moved = folder.rename(folder.with_name("elsewhere"))
    assert ImageFolder(moved, None, 3).fingerprint(ALONE) == known
    content = bytearray((moved / "1.png").read_bytes())
    content[-1] ^= 1  # as many bytes as before
    (moved / "1.png").write_bytes(content)
    assert ImageFolder(moved, 8, 7).fingerprint(ALONE) != known


def test_what_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    with pytest.raises(EvaluationError, match=r"broken\.png: undecodable"):
        list(ImageFolder(folder, 8, 8).batches())
    with pytest.raises(EvaluationError, match="no image file"):
        empty = tmp_path / "empty"
        empty.mkdir()
        ImageFolder(empty, 8, 8)
