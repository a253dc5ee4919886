"""CLIP's measures are what open_clip makes of the same images and captions, with random weights."""

import hashlib
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image

from evaluation.metrics.clip_score import ClipScore
from evaluation.metrics.metric import ALONE, Pictures, Sizes
from evaluation.open_clip_features import KNOWN, OpenClip, view_of
from tests.evaluation.networks import pictures

MODEL = "ViT-S-32-alt"
LARGE = ("datacomp_xl_s13b_b90k", "laion2b_s32b_b82k")
MLPERF = "9a78ef8e8c73fd0df621682e7a8e8eb36c6916cb3c16b291a082ecd52ab79cc4"
"""sha256 of the weights that conf/metric/clip_score.yaml names."""
CAPTIONS = ["a red square", "two birds", ""]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip") / "clip.pth"
    torch.save(open_clip.create_model(MODEL, load_weights=False).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def network(weights: Path) -> OpenClip:
    return OpenClip(MODEL, str(weights), hashlib.sha256(weights.read_bytes()).hexdigest())


def test_embeddings_and_cosines_are_open_clips(weights: Path, network: OpenClip) -> None:
    images = pictures(3, 0, 40)
    reference, _, view = open_clip.create_model_and_transforms(MODEL, pretrained=str(weights))
    with torch.no_grad():
        views = torch.stack([view(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
        image = reference.eval().encode_image(views)
        text = reference.encode_text(open_clip.get_tokenizer(MODEL)(CAPTIONS), normalize=True)
    seen = Pictures(torch.arange(3), images, CAPTIONS)
    found = network.outputs(seen)
    torch.testing.assert_close(found["features"], image, rtol=1e-4, atol=1e-5)
    scores = (image / image.norm(dim=1, keepdim=True) * text).sum(1)
    torch.testing.assert_close(found["score"], scores, rtol=1e-4, atol=1e-5)
    assert network.widths == {"features": image.shape[1]}
    metric = ClipScore(network, Sizes(3, 3), 0)
    metric.generated(seen, found)
    metric.reduce(ALONE)
    assert metric.compute(ALONE)["CLIP score"].value == pytest.approx(float(scores.mean()), abs=1e-5)
    with pytest.raises(ValueError, match="compares images with their captions, and these have none"):
        metric.generated(Pictures(torch.arange(3), images), {})


def test_what_cannot_be_loaded_is_named(weights: Path) -> None:
    with pytest.raises(ValueError, match="open_clip has no model 'ViT-Z'; choose one of"):
        OpenClip("ViT-Z", str(weights))
    with pytest.raises(ValueError, match="clip_weights=null"):
        OpenClip(MODEL, None)
    with pytest.raises(ValueError, match="and not 00"):
        OpenClip(MODEL, str(weights), "00")
    with pytest.raises(ValueError, match="not the weights of RN50-quickgelu"):
        OpenClip("RN50-quickgelu", str(weights))


def test_weights_see_images_as_they_were_trained(weights: Path) -> None:
    """One model's published weights differ in what they take for mean and deviation, in resizing and activation."""
    assert view_of(MODEL, None) == {}  # nobody's
    usual, inception = ({"image_mean": view_of("ViT-L-14", name)["image_mean"]} for name in LARGE)
    assert usual != inception == {"image_mean": (0.5, 0.5, 0.5)}
    assert view_of("ViT-B-16-SigLIP", None)["image_resize_mode"] == "squash"  # those of its only weights
    assert view_of("ViT-H-14", KNOWN[MLPERF])["image_resize_mode"] == "shortest"
    for model, name, message in (
        ("ViT-L-14", None, "ViT-L-14's published weights differ in how they see images, or in their activation; say"),
        ("ViT-L-14", "laion", "open_clip knows no weights 'laion' of ViT-L-14; choose one of openai,"),
        ("ViT-B-32", "openai", "the weights openai of ViT-B-32 have the activation of ViT-B-32-quickgelu"),
    ):
        with pytest.raises(ValueError, match=message):
            view_of(model, name)
    with pytest.raises(ValueError, match="no weights 'openai' of ViT-S-32-alt"):
        OpenClip(MODEL, str(weights), pretrained="openai")
