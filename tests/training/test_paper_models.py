"""The diffusion models of the paper's Tables 12 to 15 and Stable Diffusion v1, one experiment each."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from evaluation.frozen_conditioners import build_frozen_conditioners
from models.conditioners import NOTHING, Condition
from models.latent_diffusion import LatentDiffusion
from tests.conftest import PROJECT
from tests.training.runs import composed
from training.checks import check_settings
from training.model_checks import check_models
from training.modules import WithoutInitialisation

EXPERIMENTS = PROJECT / "conf" / "experiment"


class Row(NamedTuple):
    """The paper's millions of parameters, and the exact counts of the published model where there is one.

    other: what the paper counts and our trainable module doesn't hold (first stage, unused head). tolerance: by how
    much the paper's figure may be off; wide where its own table gives settings that make another number.
    """

    paper: int
    unet: int | None = None
    conditioner: int = 0
    other: int = 0
    tolerance: float = 0.02


FIRST_STAGE_VQ_F4 = 55_322_782
TEXT_HEAD = 39_098_682  # published with the text transformer and never used
LAYOUT_TRANSFORMER, LAYOUT_HEAD = 54_656_000, 4_202_496  # together 58,858,496
MODELS = {
    "celebahq": Row(274, 274_056_163),
    "ffhq": Row(274, 274_056_163),
    "lsun_bedrooms": Row(274, 274_056_163),
    "lsun_churches": Row(294, 294_966_916),
    "imagenet_ldm1": Row(396),
    "imagenet_ldm2": Row(391),
    "imagenet_ldm4": Row(391, 400_920_579, 512_512, tolerance=0.03),  # its header tells what was tried
    "imagenet_ldm8": Row(395),
    "imagenet_ldm16": Row(395),
    "imagenet_ldm32": Row(395),
    "celebahq_ldm1": Row(270),
    "celebahq_ldm2": Row(265),
    "celebahq_ldm4": Row(274),
    "celebahq_ldm8": Row(258),
    "celebahq_ldm16": Row(260),
    "celebahq_ldm32": Row(258),
    "txt2img_1p45b": Row(1450, 872_300_484, 542_895_360, TEXT_HEAD),
    "layout_openimages": Row(306, 246_277_379, LAYOUT_TRANSFORMER, LAYOUT_HEAD),
    "layout_coco": Row(345, tolerance=0.07),  # its header tells what was tried
    "imagenet": Row(400, 400_920_579, 512_512),  # of Tab. 3, 10 and 18; Tab. 15 says 395M
    "superresolution": Row(169, 113_622_563, 0, FIRST_STAGE_VQ_F4),
    "inpainting": Row(215),
    "inpainting_big": Row(387, 387_245_827),
    "semantic": Row(215, 215_229_315, 546),
    "stable_diffusion_v1_256": Row(860, 859_520_964),
    "stable_diffusion_v1_512": Row(860, 859_520_964),
}
NOT_OF_THE_PAPER = {"demo", "demo_autoencoder", "photographs_autoencoder", "imagenet_ldm8_classifier"}
"""The last without its size."""


def test_every_model_has_its_experiment() -> None:
    found = {path.stem for path in EXPERIMENTS.glob("*.yaml") if not path.stem.startswith("first_stage_")}
    assert found == MODELS.keys() | NOT_OF_THE_PAPER


@pytest.mark.parametrize("name", MODELS)
def test_a_model_composes_passes_the_checks_and_has_its_size(name: str, tmp_path: Path) -> None:
    row = MODELS[name]
    config = composed([f"experiment={name}", "data.url=s3://a/b", f"run.folder={tmp_path}"])
    check_settings(config, config.batch.global_size // config.batch.micro_size)
    sizes = {parameter: math.prod(shape) for parameter, shape in check_models(config)["model"].items()}
    unet = sum(size for parameter, size in sizes.items() if parameter.startswith("unet."))
    trained = sum(sizes.values())
    if row.unet is not None:
        assert (unet, trained - unet) == (row.unet, row.conditioner)
    assert (trained + row.other) / 1e6 == pytest.approx(row.paper, rel=row.tolerance)
    header = (EXPERIMENTS / f"{name}.yaml").read_text().splitlines()[:6]
    [told] = re.findall(r"([\d,]+) parameters are trained", " ".join(header))
    assert int(told.replace(",", "")) == trained
    assert any(f"experiment={name}" in line for line in header)


def test_stable_diffusion_reads_clip_s_text_encoder() -> None:
    config = composed(["experiment=stable_diffusion_v1_512", "data.url=s3://a/b"])
    with torch.device("meta"), WithoutInitialisation():
        frozen = build_frozen_conditioners(config)
    assert sum(p.numel() for p in frozen.parameters()) == 123_060_480
    assert not any(p.requires_grad for p in frozen.parameters())


ONE_OF_A_KIND = ("txt2img_1p45b", "imagenet", "layout_coco", "semantic", "inpainting_big", "lsun_bedrooms")
"""Models that stand for the others where all of them would take minutes."""


def small(config: DictConfig) -> LatentDiffusion:
    """The model of a configuration with a narrow UNet and shallow conditioners; otherwise as it is."""
    config.model.unet.channels = 32
    for conditioner in config.model.conditioners.values():
        if "depth" in conditioner:
            conditioner.depth = 1
            conditioner.vocabulary_size = 9000 if conditioner.vocabulary_size > 9000 else conditioner.vocabulary_size
    return instantiate(config.model)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ONE_OF_A_KIND else [pytest.mark.slow]) for name in MODELS]
)
def test_gradients_reach_every_trainable_parameter(name: str) -> None:
    """A parameter without one would wait for a reduction that never comes, under ZeRO."""
    config = composed([f"experiment={name}", "data.url=s3://a/b"])
    channels = config.model.unet.out_channels
    model = small(config)
    side = 2 * model.unet.stride
    shapes = {"low_resolution": (3, side, side), "segmentation": (4 * side, 4 * side)}
    inputs = {}
    for input_name in model.conditioners:
        nothing = instantiate(config.inputs[input_name]).nothing()
        inputs[input_name] = torch.zeros(2, *shapes.get(input_name, nothing.shape), dtype=nothing.dtype)
    given = NOTHING
    if "caption" in config.frozen_conditioners:
        given = Condition(context=torch.randn(2, 5, config.model.unet.context_width))
    if "masked_image" in config.frozen_conditioners:
        given = Condition(channels=torch.randn(2, config.model.unet.in_channels - channels, side, side))
    output = model(torch.randn(2, channels, side, side), torch.tensor([3, 700]), inputs, given)
    assert output.shape == (2, channels, side, side)
    output.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
