"""A protocol's hash says whether numbers can be compared; the shipped ones are what they claim."""

import importlib
import inspect
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from evaluation.evaluate import build_protocol
from evaluation.metrics.metric import Network, Sizes
from evaluation.networks import Networks
from evaluation.protocol import Protocol

CONF = Path(__file__).resolve().parents[2] / "conf"
BASE = Protocol("p", "some data", "inception", 100, 0, 64, 50, 2.0)


def load(*overrides: str) -> Protocol:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return Protocol.of(compose("evaluate", overrides=["run=x", *overrides]).protocol)


def test_every_setting_that_changes_a_number_changes_the_hash() -> None:
    other: dict[str, Any] = {
        "name": "q", "data": "other", "features": "efficientnet_lite0", "captions": 99, "seed": 1,
        "image_size": 32, "sampler_steps": 49, "guidance_scale": 2.1, "precision": "bfloat16", "splits": 9,
        "spacing": "trailing", "sampler": "plms", "eta": 1.0, "draws": "reconstructions", "reference": "file",
        "picture_file": "jpeg95", "weights": "raw", "data_sha256": "ab", "features_sha256": "cd",
        "metrics": {"psnr": {"_target_": "evaluation.metrics.psnr.Psnr", "resamples": 0}},
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


# What was measured by them must stay comparable: of each, the hash that it had when it was shipped.
SHIPPED = {
    "openmoji": "2117e8c2f2cf87dc",
    "coco30k_256": "a0b9f90716f74541",
    "coco30k_512": "c0f3312cd9adaaee",
    "mlperf_sd": "f8f0bb30174a0924",
    "imagenet50k_256": "ccdb8611d6dd6907",
    "unconditional50k": "658ee8405b9e7cbb",
    "reconstruction_imagenet": "bd1e98adc2166a19",
    "superres_imagenet": "c5138d5726699e9f",
    "inpainting_places30k": "c53aa0d9fe7cba80",
    "layout_coco2048": "4043e796b43c5b23",
}


def test_shipped_protocols_keep_their_hashes() -> None:
    assert set(SHIPPED) == {path.stem for path in (CONF / "protocol").glob("*.yaml")}
    found = {name: load(f"protocol={name}") for name in SHIPPED}
    assert {name: protocol.name for name, protocol in found.items()} == {name: name for name in SHIPPED}
    assert {name: protocol.hash for name, protocol in found.items()} == SHIPPED
    assert all(protocol.features == "inception" for name, protocol in found.items() if name != "openmoji")


# What the paper's tables (MLPerf's: its README) ask for: samples, side, steps, eta, guidance; and the row of a model.
@pytest.mark.parametrize(
    ("name", "settings", "row"),
    [
        ("coco30k_256", (30_000, 256, 250, 0.0, 1.5), (12.63, 30.29, {})),
        ("mlperf_sd", (30_000, 512, 50, 0.0, 8.0), (90, None, {"CLIP score": 0.15})),
        ("imagenet50k_256", (50_000, 256, 250, 0.0, 1.5), (3.60, 247.67, {"Precision": 0.87, "Recall": 0.48})),
        ("unconditional50k", (50_000, 256, 200, 1.0, 1.0), (5.11, None, {"Precision": 0.72, "Recall": 0.49})),
        ("superres_imagenet", (50_000, 256, 100, 0.0, 1.0), (2.8, 166.3, {"PSNR": 24.4, "SSIM": 0.69})),
        ("inpainting_places30k", (30_000, 512, 50, 0.0, 1.0), (1.50, None, {"LPIPS": 0.137})),
        ("layout_coco2048", (2048, 256, 200, 0.0, 1.0), (40.91, None, {})),
    ],
)
def test_protocols_are_the_papers(
    name: str, settings: tuple[float, ...], row: tuple[float, float | None, dict[str, float]]
) -> None:
    p = load(f"protocol={name}")
    assert (p.captions, p.image_size, p.sampler_steps, p.eta, p.guidance_scale) == settings
    assert (p.paper[0]["frechet"], p.paper[0]["score"], p.paper[0].get("others", {})) == row


def test_published_rows_tell_what_is_otherwise() -> None:
    def rows(*overrides: str) -> list[str]:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("evaluate", overrides=["run=x", "protocol=coco30k_256", *overrides])
        return [row["name"] for row in build_protocol(config).paper]

    shipped = [row["name"] for row in load("protocol=coco30k_256").paper]
    assert rows("protocol.guidance_scale=1", "+metric@protocol.metrics.kid=kid") == shipped
    assert rows("protocol.captions=100", "protocol.splits=5") == [f"{n}, captions 30000, splits 10" for n in shipped]


def test_reconstructions_stand_beside_the_sixteen_first_stages() -> None:
    p = load("protocol=reconstruction_imagenet")
    assert (p.draws, p.captions, p.image_size, len(p.paper)) == ("reconstructions", 50_000, 256, 16)
    rows = {row["name"]: row for row in p.paper}
    assert rows["KL f=8, 4 (Tab. 8)"]["others"] == {"PSNR": 24.19, "PSIM": 1.02, "SSIM": 0.69}
    assert rows["VQ f=4, 8192 x 3 (Tab. 8)"]["frechet"] == 0.58


def test_a_metric_is_one_file_of_settings_that_any_protocol_may_name() -> None:
    """All settings of a metric are in its file, as what isn't there isn't in the card."""
    plain = load("protocol=openmoji")
    for path in sorted((CONF / "metric").glob("*.yaml")):
        protocol = load("protocol=openmoji", f"+metric@protocol.metrics.{path.stem}={path.stem}")
        assert protocol.hash != plain.hash
        target = protocol.metrics[path.stem]["_target_"]
        module, _, name = target.rpartition(".")
        wanted = set(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
        assert set(protocol.metrics[path.stem]) == wanted - {"sizes"} | {"_target_"}


def test_metrics_are_built_of_their_settings(projection: Network) -> None:
    overrides = [f"+metric@protocol.metrics.{name}={name}" for name in ("kid", "precision_recall", "psnr")]
    protocol = load("protocol=openmoji", *overrides, "protocol.metrics.kid.subset_size=5")
    networks = Networks(projection)  # type: ignore[arg-type]
    assert list(networks.metrics(protocol.metrics, Sizes(10, 10))) == ["kid", "precision_recall", "psnr"]
    with pytest.raises(ValueError, match="metric kid: 4 generated and 10 real images are fewer than subset_size=5"):
        networks.metrics(protocol.metrics, Sizes(4, 10))
    protocol = load("protocol=openmoji", "+metric@protocol.metrics.sfid=sfid")
    with pytest.raises(ValueError, match="has no output 'spatial'; choose one of features, logits"):
        networks.metrics(protocol.metrics, Sizes(10, 10))
    for name, key in (("clip_score", "clip_weights"), ("lpips", "perceptual_weights")):
        protocol = load("protocol=openmoji", f"+metric@protocol.metrics.{name}={name}")
        with pytest.raises(ValueError, match=f"{key}=null"):
            networks.metrics(protocol.metrics, Sizes(10, 10))
    with pytest.raises(ValueError, match="its name must be one of features, open_clip, vgg16"):
        networks.load({"name": "dino"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sampler_steps", 0),
        ("captions", 9),
        ("seed", -1),
        ("precision", "float16"),
        ("guidance_scale", -1.0),
        ("spacing", "even"),
        ("sampler", "euler"),
        ("eta", -0.5),
        ("reference", "none"),
        ("picture_file", "gif"),
        ("draws", "grids"),
    ],
)
def test_values_out_of_range_are_named(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{key} is {value!r}"):
        replace(BASE, **{key: value})  # type: ignore[arg-type]
