"""The committed first stage is as good as its card says."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from data.sources import HELD_OUT
from data.sources.openmoji import OpenMoji
from evaluation.first_stage import load_first_stage
from evaluation.metrics.psnr import psnr
from evaluation.metrics.ssim import ssim
from evaluation.pictures import to_uint8
from tests.conftest import PROJECT
from tests.training.runs import composed


@pytest.mark.slow
def test_the_committed_first_stage_reconstructs_what_it_never_saw() -> None:
    config = composed(["experiment=demo"])
    stage = load_first_stage(instantiate(config.first_stage.autoencoder), config.first_stage.weights, None)
    source = OpenMoji(size=64)
    held_out = [
        np.array(Image.open(io.BytesIO(sample.image)).convert("RGB")) for sample in source if sample.split == HELD_OUT
    ]
    images = torch.from_numpy(np.stack(held_out)).permute(0, 3, 1, 2)
    assert len(images) == 208
    with torch.no_grad():
        reconstructions = torch.cat(
            [
                to_uint8(stage.autoencoder.decode(stage.autoencoder.encode(part.float() / 127.5 - 1).mode()))
                for part in images.split(32)
            ]
        )
    assert psnr(images, reconstructions).mean().item() >= 26.0
    assert psnr(images, reconstructions).mean().item() == pytest.approx(28.27, abs=0.05)
    assert ssim(images, reconstructions).mean().item() == pytest.approx(0.967, abs=0.002)


def test_the_file_is_small() -> None:
    assert (PROJECT / "conf" / "weights" / "demo_first_stage.safetensors").stat().st_size <= 4_000_000
