"""LPIPS and PSIM as measures of uint8 images; that they are the lpips package's is shown where they are computed."""

import hashlib
from pathlib import Path

import pytest
import torch

from evaluation.metrics.lpips import Lpips
from evaluation.metrics.metric import ALONE, Pictures, Sizes
from evaluation.metrics.psim import Psim
from evaluation.vgg16 import Vgg16
from models.perceptual import VGG16, PerceptualLoss
from tests.evaluation.networks import pictures


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the trunk."""
    generator, width, layer, state = torch.Generator().manual_seed(0), 3, 0, {}
    for entry in VGG16:
        if isinstance(entry, int):
            state[f"features.{layer}.weight"] = 0.05 * torch.randn(entry, width, 3, 3, generator=generator)
            state[f"features.{layer}.bias"] = torch.zeros(entry)
            width = entry
        layer += 2 if isinstance(entry, int) else 1
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, path)
    return path


def test_both_measures_come_of_one_look(weights: Path) -> None:
    network = Vgg16(str(weights), hashlib.sha256(weights.read_bytes()).hexdigest())
    x, y = pictures(4, 0, 32), pictures(4, 1, 32)
    seen = Pictures(torch.arange(4), x, (), y)
    outputs = network.outputs(seen)
    with torch.no_grad():
        weighted, alike = PerceptualLoss(weights).distances(x / 127.5 - 1, y / 127.5 - 1)
    for metric, name, expected in (
        (Lpips(network, Sizes(4, 4), 0), "LPIPS", weighted),
        (Psim(network, Sizes(4, 4), 0), "PSIM", alike),
    ):
        metric.generated(seen, outputs)
        metric.reduce(ALONE)
        assert metric.compute(ALONE)[name].value == pytest.approx(float(expected.mean()), rel=1e-5)
        with pytest.raises(ValueError, match=f"{name} compares images with their originals"):
            metric.generated(Pictures(torch.arange(4), x), network.outputs(Pictures(torch.arange(4), x)))


def test_missing_and_other_weights_are_named(weights: Path) -> None:
    with pytest.raises(ValueError, match="perceptual_weights=null"):
        Vgg16(None)
    with pytest.raises(ValueError, match="and not 397923af"):
        Vgg16(str(weights))
