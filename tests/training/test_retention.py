"""The newest checkpoints stay, and those of certain steps; nothing goes before its successor is complete."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from training.checkpoint_files import DAMAGED, MANIFEST, Manifest, folder_name, step_of
from training.retention import Best, Retention

PSNR = "eval/psnr"


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


def measured(folder: Path, step: int, value: float | None, retention: Retention) -> Path:
    """A checkpoint at whose step the metric had this value; None: it wasn't measured there."""
    row = {"train/loss": 1.0} | ({} if value is None else {PSNR: value})
    path = put(folder, step)
    (path / MANIFEST).write_text(Manifest(step, step, 1, {}, {}, dict(retention.measured(row))).to_json())
    return path


@pytest.mark.parametrize(
    ("mode", "values", "left"),
    [
        ("max", [3.0, 5.0, 4.0, 4.5, 1.0], [2, 5]),
        ("min", [3.0, 2.0, 4.0, 4.5, 3.0], [2, 5]),
        ("max", [3.0, 5.0, 4.0, 5.0, 1.0], [4, 5]),  # of equals the newest
        ("max", [3.0, None, math.nan, -math.inf, None], [1, 5]),
        ("max", [None, None, None, None, None], [5]),
    ],
)
def test_the_best_stays_beside_the_newest(
    tmp_path: Path, mode: str, values: list[float | None], left: list[int]
) -> None:
    retention = Retention(keep=1, best=Best(PSNR, mode))
    for step, value in enumerate(values, start=1):
        retention.apply(measured(tmp_path, step, value, retention))
    assert steps(tmp_path) == left


def test_the_best_goes_no_sooner_than_a_better_one_is_complete(tmp_path: Path) -> None:
    retention = Retention(keep=1, best=Best(PSNR, "max"))
    measured(tmp_path, 1, 9.0, retention)
    better = measured(tmp_path, 3, 10.0, retention)
    manifest = (better / MANIFEST).rename(better / "not yet")
    retention.apply(measured(tmp_path, 2, 1.0, retention))
    assert steps(tmp_path) == [1, 2, 3]
    manifest.rename(better / MANIFEST)
    retention.apply(better)
    assert steps(tmp_path) == [3]


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(ValueError, match=r"checkpoint\.keep_best\.mode is 'most'"):
        Best(PSNR, "most")
