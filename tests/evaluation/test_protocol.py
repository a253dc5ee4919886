"""A protocol's hash says whether numbers can be compared; the shipped ones are what they claim."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from evaluation.protocol import Protocol

CONF = Path(__file__).resolve().parents[2] / "conf" / "protocol"
BASE = Protocol("p", "some data", "inception", 100, 0, 64, 50, 2.0)


def load(name: str) -> Protocol:
    protocol: Protocol = instantiate(OmegaConf.load(CONF / f"{name}.yaml"), _convert_="all")
    return protocol


def test_every_setting_that_changes_a_number_changes_the_hash() -> None:
    other: dict[str, Any] = {
        "name": "q", "data": "other", "features": "efficientnet_lite0", "captions": 99, "seed": 1,
        "image_size": 32, "sampler_steps": 49, "guidance_scale": 2.1, "precision": "bfloat16", "splits": 9,
        "spacing": "trailing",
    }  # fmt: skip
    assert {field.name for field in fields(Protocol)} == {*other, "paper"}
    hashes = {replace(BASE, **{key: value}).hash for key, value in other.items()} | {BASE.hash}
    assert len(hashes) == len(other) + 1
    assert replace(BASE, paper=[{"name": "x", "frechet": 1.0, "score": 2.0}]).hash == BASE.hash


def test_hash_is_the_same_for_ever() -> None:
    assert BASE.hash == "c2284cd0c18e8d2b"


def test_seeds_of_images_never_meet() -> None:
    one, two = BASE, replace(BASE, seed=1)
    seeds = {p.image_seed(n) for p in (one, two) for n in range(30_000)}
    assert len(seeds) == 60_000
    assert max(seeds) < 2**63
    assert replace(BASE, seed=2**31 - 1).image_seed(10**9) < 2**63


def test_shipped_protocols() -> None:
    coco = load("coco30k_256")
    assert (coco.captions, coco.image_size, coco.sampler_steps, coco.guidance_scale) == (30_000, 256, 250, 1.5)
    assert coco.features == "inception"
    assert (coco.paper[0]["frechet"], coco.paper[0]["score"]) == (12.63, 30.29)
    assert (coco.paper[1]["frechet"], coco.paper[1]["score"]) == (23.31, 20.03)
    assert load("openmoji").features == "efficientnet_lite0"
    for path in CONF.glob("*.yaml"):
        assert load(path.stem).name == path.stem


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sampler_steps", 0),
        ("captions", 9),
        ("seed", -1),
        ("precision", "float16"),
        ("guidance_scale", -1.0),
        ("spacing", "even"),
    ],
)
def test_values_out_of_range_are_named(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{key} is {value!r}"):
        replace(BASE, **{key: value})  # type: ignore[arg-type]
