"""Which models diffusers has a pipeline for, and what is said of the others."""

from __future__ import annotations

from typing import Any

import pytest

from evaluation.diffusers_folder import PipelineParts, pipeline_for
from models.autoencoder import AutoencoderKL, AutoencoderVQ, IdentityAutoencoder
from models.conditioners import Conditioner, Conditioners
from models.conditioners.class_label import ClassLabel
from models.conditioners.class_token import ClassToken
from models.conditioners.clip_text import ClipText, clip_text_encoder
from models.conditioners.masked_image import MaskedImage
from models.conditioners.spatial import SpatialRescaler
from models.conditioners.text_transformer import TextTransformer
from models.latent_diffusion import FirstStage, LatentDiffusion
from models.schedule import linear
from models.unet import UNet

KL, VQ = AutoencoderKL(32, [1, 1], 1, 4), AutoencoderVQ(32, [1, 1], 1, 4, 16)


def parts(
    trained: dict[str, Conditioner],
    frozen: dict[str, Conditioner] | None = None,
    autoencoder: Any = KL,
    scale: float = 1.0,
    **unet: Any,
) -> PipelineParts:
    settings = {"heads": 2, "context_width": 16, **unet}
    model = LatentDiffusion(UNet(4, 4, 32, [1], 1, [1], **settings), trained)
    first_stage = FirstStage(autoencoder, scale)
    return PipelineParts(model, Conditioners(frozen or {}), first_stage, linear(0.1, 0.2), {}, 64)


def transformer() -> TextTransformer:
    return TextTransformer(9, 7, 16, 1, 1)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: parts({"layout": transformer()}), "diffusers has pipelines for captions"),
        (lambda: parts({"segmentation": SpatialRescaler(5, 3, 1)}, context_width=None), "diffusers has pipelines for"),
        (
            lambda: parts({}, {"masked_image": MaskedImage(KL)}, context_width=None),
            "'MaskedImage'.*format=safetensors",
        ),
        (lambda: parts({"caption": transformer(), "label": ClassToken(5, 16)}), "diffusers has pipelines for"),
        (lambda: parts({"label": ClassLabel()}, classes=11, context_width=None), r"classes=11.*only 1001"),
        (
            lambda: parts({}, {"caption": ClipText(clip_text_encoder(16, 1, 1, vocabulary_size=9))}, VQ),
            "no AutoencoderKL",
        ),
        (lambda: parts({}, None, IdentityAutoencoder(), 0.5, context_width=None), "scale 0.5"),
        (lambda: parts({"label": ClassToken(5, 16)}, None, IdentityAutoencoder()), "only without conditioners"),
    ],
)
def test_a_model_without_a_pipeline_is_refused_by_what_it_has(made: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline_for(made())
