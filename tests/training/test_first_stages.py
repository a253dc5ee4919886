"""The first stages of the paper's Tab. 8, one experiment each: composed, checked and counted."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from models.autoencoder import AutoencoderKL, AutoencoderVQ
from models.latent_diffusion import FirstStage
from tests.conftest import PROJECT
from tests.training.runs import composed
from training.checks import check_settings
from training.model_checks import check_models
from training.train import check

EXPERIMENTS = PROJECT / "conf" / "experiment"
RELEASED = json.loads((PROJECT / "tests" / "golden" / "released_first_stages.json").read_text())
RANKS = 8


@dataclass(frozen=True)
class Row:
    """f, latent channels, entries of the codebook (None: KL), R-FID and PSNR; whether there is attention."""

    f: int
    channels: int
    entries: int | None
    r_fid: str
    psnr: str
    attention: bool = True


TABLE_8 = {
    "vq_f32": Row(32, 16, 16384, "31.83", "17.45"),
    "vq_f16": Row(16, 8, 16384, "5.15", "20.83"),
    "vq_f8": Row(8, 4, 16384, "1.14", "23.07"),
    "vq_f8_n256": Row(8, 4, 256, "1.49", "22.35"),
    "vq_f4": Row(4, 3, 8192, "0.58", "27.43"),
    "vq_f4_noattn": Row(4, 3, 8192, "1.06", "25.21", attention=False),
    "vq_f4_n256": Row(4, 3, 256, "0.47", "26.43"),
    "vq_f2": Row(2, 2, 2048, "0.16", "30.85"),
    "vq_f2_n64": Row(2, 2, 64, "0.40", "29.13"),
    "kl_f32": Row(32, 64, None, "2.04", "22.27"),
    "kl_f32_c16": Row(32, 16, None, "7.3", "20.38"),
    "kl_f16": Row(16, 16, None, "0.87", "24.08"),
    "kl_f16_c8": Row(16, 8, None, "2.63", "21.94"),
    "kl_f8": Row(8, 4, None, "0.90", "24.19"),
    "kl_f4": Row(4, 3, None, "0.27", "27.53"),
    "kl_f2": Row(2, 2, None, "0.086", "32.47"),
}
PUBLISHED = {name.removeprefix("first-stage-").replace("-", "_"): entry for name, entry in RELEASED.items()}


def test_every_row_has_its_experiment() -> None:
    found = {path.stem.removeprefix("first_stage_") for path in EXPERIMENTS.glob("first_stage_*.yaml")}
    assert found == TABLE_8.keys()
    assert PUBLISHED.keys() < TABLE_8.keys() and len(PUBLISHED) == 9


@pytest.mark.parametrize("name", TABLE_8)
def test_a_row_builds_and_passes_the_checks(name: str, tmp_path: Path) -> None:
    row = TABLE_8[name]
    overrides = [f"experiment=first_stage_{name}", "data.url=s3://a/b", "task.perceptual_weights=null"]
    config = composed([*overrides, f"run.folder={tmp_path}"])
    check_settings(config, RANKS)
    shapes = check_models(config)
    assert config.learning_rate.base == pytest.approx(4.5e-6 * config.batch.global_size)

    header = [line for line in (EXPERIMENTS / f"first_stage_{name}.yaml").read_text().splitlines() if line[0:1] == "#"]
    count = sum(math.prod(shape) for n, shape in shapes["model"].items() if n.startswith("autoencoder."))
    told = re.findall(r"([\d,]+) parameters", " ".join(header))
    assert told == [f"{count:,}"]
    assert any(f"ldm train experiment=first_stage_{name} " in line for line in header)
    assert any(f"R-FID {row.r_fid}, " in line and f"PSNR {row.psnr}, " in line for line in header)
    assert any("not published" in line for line in header) == (name not in PUBLISHED)
    if name in PUBLISHED:
        assert count == PUBLISHED[name]["params"]
        assert list(config.model.channel_multipliers) == PUBLISHED[name]["config"]["ddconfig"]["ch_mult"]

    with torch.device("meta"):
        autoencoder = instantiate(config.model)
    side = 256 // row.f
    assert FirstStage(autoencoder, 1.0).latent_shape(256, 256) == (row.channels, side, side)
    assert autoencoder.downsampling == row.f
    assert isinstance(autoencoder, AutoencoderKL if row.entries is None else AutoencoderVQ)
    if isinstance(autoencoder, AutoencoderVQ):
        assert autoencoder.codebook.entries.num_embeddings == row.entries
        assert autoencoder.codebook.commitment == 0.25
    assert any("middle.1" in n for n, _ in autoencoder.named_parameters()) == row.attention


@pytest.mark.parametrize(
    ("name", "start", "weight", "discriminator"),
    [("kl_f8", 50_001, 0.5, 2_765_633), ("vq_f4", 0, 0.75, 2_765_633), ("vq_f8", 1, 0.6, 663_361)],
)
def test_the_adversary_is_the_published_one(name: str, start: int, weight: float, discriminator: int) -> None:
    config = composed([f"experiment=first_stage_{name}"])
    assert (config.task.adversary_start, config.task.adversary_weight) == (start, weight)
    with torch.device("meta"):
        parameters = list(instantiate(config.discriminator).parameters())
    assert sum(p.numel() for p in parameters) == discriminator


def test_first_stages_are_exchanged_by_name() -> None:
    for name in TABLE_8:
        config = composed(["experiment=txt2img_1p45b", f"autoencoder@first_stage.autoencoder={name}"])
        trained = dict(composed([f"experiment=first_stage_{name}"]).model)
        assert trained.pop("activation_checkpointing") is None, "of training alone"
        assert dict(config.first_stage.autoencoder) == trained


def test_batch_size_sets_the_learning_rate() -> None:
    config = composed(["experiment=first_stage_kl_f8", "batch.global_size=48"])
    assert config.learning_rate.base == pytest.approx(4.5e-6 * 48)
    assert composed(["experiment=first_stage_kl_f8", "learning_rate.base=1e-4"]).learning_rate.base == 1e-4


def test_diffusion_on_pixels_composes_and_passes_the_checks(tiny_diffusion: list[str], tmp_path: Path) -> None:
    """LDM-1: the first stage is an identity."""
    in_pixels = composed(
        [
            *(override for override in tiny_diffusion if not override.startswith("first_stage.")),
            "~first_stage.autoencoder",
            "+first_stage.autoencoder={_target_: models.autoencoder.IdentityAutoencoder}",
            "first_stage.weights=null",
            "model.unet.in_channels=3",
            "model.unet.out_channels=3",
            f"run.folder={tmp_path}",
        ]
    )
    check(in_pixels, 2)
    first_stage = instantiate(in_pixels.first_stage)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    z = first_stage.encode(images, torch.randn(2, 3, 32, 32))
    assert torch.equal(z, images / 127.5 - 1)
    assert torch.equal(first_stage.decode(z), z)
