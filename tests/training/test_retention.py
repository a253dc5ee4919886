"""The newest checkpoints stay, and those of certain steps; nothing goes before its successor is complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.checkpoint_files import DAMAGED, MANIFEST, folder_name, step_of
from training.retention import Retention


def put(folder: Path, step: int, manifest: str | None = MANIFEST) -> Path:
    """A checkpoint, or what is left of one."""
    path = folder / folder_name(step)
    path.mkdir()
    (path / "rank-00000-of-00001.safetensors").write_bytes(b"values")
    if manifest:
        (path / manifest).write_text("{}")
    return path


def steps(folder: Path) -> list[int]:
    return sorted(map(step_of, folder.iterdir()))


@pytest.mark.parametrize(
    ("keep", "keep_every", "left"),
    [(1, None, [7]), (3, None, [5, 6, 7]), (2, 3, [3, 6, 7]), (1, 2, [2, 4, 6, 7]), (9, None, [1, 2, 3, 4, 5, 6, 7])],
)
def test_the_newest_and_those_of_every_so_many_steps_stay(
    tmp_path: Path, keep: int, keep_every: int | None, left: list[int]
) -> None:
    for step in range(1, 8):
        Retention(keep, keep_every).apply(put(tmp_path, step))
    assert steps(tmp_path) == left


def test_what_is_newer_than_the_complete_one_is_left_alone(tmp_path: Path) -> None:
    put(tmp_path, 1)
    newest = put(tmp_path, 2)
    put(tmp_path, 3, manifest=None)  # being written
    put(tmp_path, 4)
    Retention(keep=1).apply(newest)
    assert steps(tmp_path) == [2, 3, 4]


def test_what_never_became_a_checkpoint_goes_with_the_next_that_does(tmp_path: Path) -> None:
    put(tmp_path, 1, manifest=None)
    put(tmp_path, 2, manifest=DAMAGED)
    Retention(keep=5).apply(put(tmp_path, 3))
    assert steps(tmp_path) == [3]


@pytest.mark.parametrize("settings", [(0, None), (1, 0)])
def test_wrong_numbers_are_named(settings: tuple[int, int | None]) -> None:
    with pytest.raises(ValueError, match=r"checkpoint\.keep.* is 0"):
        Retention(*settings)
