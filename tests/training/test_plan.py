"""`ldm plan`: the paper's model is counted right, and the table answers what a user asks."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import yaml
from omegaconf import DictConfig

from models.unet import UNet
from tests.conftest import finish, ldm
from training import compose
from training.modules import WithoutInitialisation, build_modules
from training.planning.cluster import cluster_of
from training.planning.counting import Pass, count_training
from training.planning.plan import make_plan
from training.planning.table import lines


def composed(*overrides: str) -> DictConfig:
    config = compose.composed("plan", list(overrides))
    config.data.url = "s3://a/b"
    return config


def test_the_1p45b_model_has_the_known_flops() -> None:
    """By the published implementation 91.0 GMAC for the UNet and 38.9 for the text transformer, of an image."""
    with torch.device("meta"), WithoutInitialisation():
        model = build_modules(composed("experiment=txt2img_1p45b"))["model"]
        z_t, t, inputs = torch.empty(1, 4, 32, 32), torch.zeros(1), {"caption": torch.zeros(1, 77, dtype=torch.int64)}
    both = count_training(model, lambda: model(z_t, t, inputs).sum())
    width, inner, tokens = 1280, 512, 77
    projections = 3 * width * inner + inner * width + 2 * width * 4 * width
    text = 2 * 32 * tokens * (projections + 2 * tokens * inner)  # by hand: 32 alike layers
    assert text == pytest.approx(2 * 38.9e9, rel=0.01)
    unet = both.forward_flops - text
    assert unet == pytest.approx(2 * 91.0e9, rel=0.01)
    # All products have two of their size in the backward pass, but for the stem, whose input needs no gradient.
    assert both.backward_flops == pytest.approx(2 * both.forward_flops, rel=0.001)


def test_a_checkpointed_unet_computes_its_stages_twice_and_keeps_less() -> None:
    def unet(checkpointing: bool) -> Pass:
        with torch.device("meta"), WithoutInitialisation():
            settings = {"channel_multipliers": [1, 2], "residual_blocks": 1, "attention_downsamplings": [1, 2]}
            model = UNet(4, 4, 64, **settings, heads=4, context_width=32, activation_checkpointing=checkpointing)
            z_t, t, context = torch.empty(2, 4, 32, 32), torch.zeros(2), torch.empty(2, 20, 32)
        return count_training(model, lambda: model(z_t, t, context).sum())

    whole, again = unet(False), unet(True)
    assert again.forward_flops == whole.forward_flops
    assert 0.8 * whole.forward_flops < again.backward_flops - whole.backward_flops <= whole.forward_flops
    assert again.activation_bytes < 0.5 * whole.activation_bytes


@pytest.mark.parametrize("gpu", compose.choices("gpu"))
def test_every_gpu_says_all_that_a_plan_needs_and_where_it_is_from(gpu: str) -> None:
    found = cluster_of(composed("experiment=demo", f"cluster.gpu={gpu}", "cluster.nodes=3"))
    assert found.ranks == 24
    text = (compose.CONFIG_FOLDER / "gpu" / f"{gpu}.yaml").read_text()
    assert "data sheet" in text.splitlines()[0]
    assert all(isinstance(value, float) and value > 0 for name, value in yaml.safe_load(text).items() if name != "name")


SMALL = ["model.unet.channels=32", "data.prepare=null"]


def table(*overrides: str) -> str:
    config = composed("experiment=demo", *SMALL, *overrides)
    return "\n".join(lines(make_plan(config, cluster_of(config))))


def test_the_table_answers_what_a_user_asks() -> None:
    text = table("cluster.nodes=1", "cluster.gpus_per_node=8")
    for word in ("parameters trained", "FLOPs per image", "micro-batch", "images/s", "days", "GPU-hours", "cost"):
        assert word in text
    assert "computing at 25 % of its peak (MFU, assumed)" in text
    for word in (
        "stands still for",
        "checkpoint.every",
        "from the store",
        "shards",
        "1024",
        "Assumed",
        "weights",
        "ema",
        "buckets",
    ):
        assert word in text
    assert "batch.global_size=16 isn't" not in text
    stages = {line.split()[0].rstrip("*") for line in text.splitlines() if re.match(r"  [0-3]\*? +\d+ x \d+ ", line)}
    assert stages == {"0", "1", "2", "3"}


def test_a_batch_that_does_not_divide_is_planned_as_the_nearest_and_said_so() -> None:
    assert "set it to 24" in table("cluster.nodes=3", "batch.global_size=20")


def test_what_does_not_fit_is_said() -> None:
    assert "Nothing fits with engine=zero2" in table("assume.reserved_bytes=80e9")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.gpu=h1000", "cluster.gpu=h1000: choose one of a100-40"),
        ("cluster.nodes=0", "cluster.nodes=0: it must be a whole number of at least 1"),
        ("cluster.price_per_gpu_hour=cheap", "cluster.price_per_gpu_hour=cheap: it must be a number of at least 0"),
        ("cluster.price_per_gpu_hour=-1", "cluster.price_per_gpu_hour=-1: it must be a number of at least 0"),
        ("assume.utilisation=40", "assume.utilisation=40: it must be a share, up to 1"),
        ("assume.samples=0.5", "assume.samples=0.5: it must be a whole number of at least 1, or null"),
        ("engine.offload_optimizer=nvme", "engine.offload_optimizer=nvme: engine.zero_stage=2 can't"),
        ("engine.zero_stage=5", "engine.zero_stage=5: choose one of 0, 1, 2, 3"),
        ("steps=0", "steps=0: it must be a whole number of at least 1"),
        ("cluster.nodez=2", "did you mean cluster.nodes"),
    ],
)
def test_a_wrong_setting_is_one_line(override: str, message: str, ldm_fails: Callable[..., tuple[str, str]]) -> None:
    out, err = ldm_fails("plan", "experiment=demo", override)
    assert message in err and len(err.splitlines()) == 1
    assert out == ""


@pytest.mark.slow
def test_nothing_is_needed_but_the_experiment_s_name() -> None:
    """Neither the data, whose place the experiment leaves open, nor the first stage's weights."""
    status, out, err = finish(ldm("plan", "experiment=imagenet_ldm8_classifier", "cluster.gpu=h100", "cluster.nodes=2"))
    assert (status, err) == (0, "")
    assert "2 x 8 NVIDIA H100" in out
