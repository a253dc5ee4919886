"""Training on pictures of several sizes: the same on any number of ranks and after a restart, and counted."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.prepare import prepare
from data.sources import HELD_OUT, TRAIN, Sample
from data.stream import Storage
from tests.training.conftest import OnRanks
from tests.training.runs import composed, train
from training.checks import check_settings
from training.dataset import make_ready
from training.distributed import Distributed
from training.errors import ConfigurationError
from training.metrics import metric
from training.model_checks import check_models

BUCKETS = "data.buckets={step:8,largest_aspect:2}"
SIZES = ("24x40", "32x32", "40x24")


class Rectangles:
    """Pictures of one colour each, of which their .json doesn't tell the size."""

    name = "rectangles"
    attribution = "none"
    settings: Mapping[str, object] = {"shapes": 4}
    dropped: Mapping[str, int] = {}
    splits = (TRAIN, HELD_OUT)

    def __len__(self) -> int:
        return 64

    def key(self, number: int) -> str:
        return f"{number:04d}"

    def __getitem__(self, number: int) -> Sample:
        """Every eighth is held out."""
        height, width = ((32, 32), (50, 30), (32, 32), (26, 41))[number % 4]
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        split = TRAIN if number % 8 else HELD_OUT
        return Sample(self.key(number), buffer.getvalue(), "png", f"picture {number}", split=split)


@pytest.fixture
def overrides(tiny_diffusion: list[str], tmp_path: Path) -> list[str]:
    """A run whose data are ready, on pictures of three sizes."""
    prepare(Rectangles(), str(tmp_path / "rectangles"), Storage(), samples_per_shard=20)
    return [*tiny_diffusion, f"data.url={tmp_path / 'rectangles'}", BUCKETS, "checkpoint.every=1000"]


def rows_of_a_run(ranks: Distributed, overrides: list[str], folder: Path, stops: list[int]) -> list[dict[str, Any]]:
    """metrics.jsonl after training to each of the steps in turn, by a run whose index is made."""
    if ranks.is_main:
        folder.mkdir(parents=True)
        make_ready(composed([*overrides, f"run.folder={folder}", "steps=1"]))
    ranks.barrier()
    for stop in stops:
        _, rows = train(ranks, overrides, folder, stop)
    return rows[1:]


def test_a_run_trains_on_all_sizes_and_counts_them(overrides: list[str], tmp_path: Path, on_ranks: OnRanks) -> None:
    rows = on_ranks(1, rows_of_a_run, overrides, tmp_path / "run", [5])
    for row in rows:
        counts = [row[f"data/size/{size}"] for size in SIZES]
        assert sum(counts) == row["images_seen"] and all(count % 8 == 0 for count in counts)
        assert math.isfinite(row["train/loss"])
        assert all(metric(name) is not None for name in row)
    assert all(counts), "all sizes come"


def test_what_takes_squares_alone_refuses_buckets(
    tiny_autoencoder: list[str], tiny_diffusion: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="name=autoencoder takes squares alone; set it to null"):
        check_settings(composed([*tiny_autoencoder, BUCKETS, "steps=1", f"run.folder={tmp_path}"]), 1)
    with pytest.raises(ConfigurationError, match=r"data\.latents=/latents are of squares; set one to null"):
        check_settings(composed([*tiny_diffusion, BUCKETS, "data.latents=/latents", "steps=1", "run.folder=x"]), 1)
    channels = composed(["experiment=superresolution", "data.url=/x", "data.buckets={step:64,largest_aspect:2}"])
    with pytest.raises(ConfigurationError, match="low_resolution gives channels of one size; set it to null"):
        check_models(channels)


@pytest.mark.slow
def test_ranks_and_restarts_change_nothing(overrides: list[str], tmp_path: Path, on_ranks: OnRanks) -> None:
    one = on_ranks(1, rows_of_a_run, overrides, tmp_path / "one", [8])
    two = on_ranks(2, rows_of_a_run, overrides, tmp_path / "two", [3, 8])
    assert len(one) == len(two) == 8
    for row, other in zip(one, two, strict=True):
        assert math.isclose(row["train/loss"], other["train/loss"], rel_tol=1e-4)
        counted = {name: value for name, value in row.items() if name.startswith(("data/size", "data/epoch"))}
        assert len(counted) == 4 and counted.items() <= other.items()
