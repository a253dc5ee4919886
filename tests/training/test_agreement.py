"""Metrics of all ranks become one row."""

from __future__ import annotations

import math

from training.agreement import together


def test_scalars_are_means_over_ranks() -> None:
    assert together([{"loss": 1.0, "kl": 4.0}, {"loss": 2.0, "kl": 0.0}]) == {"train/loss": 1.5, "train/kl": 2.0}


def test_groups_are_means_over_samples_wherever_they_lie() -> None:
    first = {"decile": [[6.0, 3.0], [0.0, 0.0], [0.0, 0.0]]}
    second = {"decile": [[2.0, 1.0], [5.0, 1.0], [0.0, 0.0]]}
    assert together([first, second]) == {"train/decile_0": 2.0, "train/decile_1": 5.0}


def test_a_group_with_a_name_of_its_own() -> None:
    assert together([{"art": [6.0, 3.0]}, {"art": [4.0, 1.0]}]) == {"train/art": 2.5}
    assert together([{"art": [0.0, 0.0]}]) == {}


def test_a_group_of_nobody_has_no_mean() -> None:
    row = together([{"decile": [[0.0, 0.0], [math.nan, 1.0]]}])
    assert list(row) == ["train/decile_1"]
    assert math.isnan(row["train/decile_1"])
