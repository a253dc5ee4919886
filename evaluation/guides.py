"""What can lead sampling beside a model's own inputs: a picture (LDM App. C), or a classifier (LDM-8-G).

Each function here reads what it needs and returns a Guide for one call of `generate`. The scale says how strongly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.errors import DataError
from data.inputs.label import LABEL, Label
from evaluation.errors import EvaluationError
from evaluation.generate import Guide
from evaluation.run import LoadedClassifier, LoadedModel, LoadedRun, load_classifier
from evaluation.start_picture import read_picture
from models.guidance import Distance, classifier, downsampling, post_hoc, squared_error
from models.perceptual import PerceptualLoss
from models.prediction import Denoiser


@dataclass(frozen=True)
class Drawing:
    """What is to be drawn, by which model. size: of the images in pixels. inputs: what the model's conditioners read,
    each [N, ...], by name. count: N, how many images."""

    source: LoadedModel
    size: int
    inputs: Mapping[str, Tensor]
    count: int


def follow_image(drawing: Drawing, image: str, scale: float) -> Guide:
    """Towards a picture, pixel by pixel (LDM App. C; T the identity).

    image: its path; it is cut to the size of the images. Raises EvaluationError for an unusable picture.
    """
    return _towards(drawing, squared_error(_picture(drawing, image, drawing.size)), scale)


def follow_downsampled(drawing: Drawing, image: str, factor: int, scale: float) -> Guide:
    """Towards images that, made `factor` times smaller, look like a picture (LDM App. C; T downsamples).

    image: its path; it is cut to the size of the smaller images. Raises EvaluationError for an unusable picture, and
    where factor doesn't divide the size.
    """
    if factor < 1 or drawing.size % factor:
        raise EvaluationError(f"guide.factor={factor}: it must divide the images' size, {drawing.size}")
    wanted = _picture(drawing, image, drawing.size // factor)
    return _towards(drawing, squared_error(wanted, downsampling(factor)), scale)


def follow_perceived(drawing: Drawing, image: str, weights: str, scale: float) -> Guide:
    """Towards images that LPIPS holds for near to a picture (LDM App. C).

    image: its path; it is cut to the size of the images. weights: path of torchvision's VGG-16. Raises EvaluationError
    for an unusable picture, and where there are no such weights.
    """
    wanted = _picture(drawing, image, drawing.size)
    try:
        perceptual = PerceptualLoss(weights).to(wanted.device)
    except (FileNotFoundError, ValueError) as error:
        raise EvaluationError(f"guide.weights={weights}: {error}") from error
    return _towards(drawing, lambda images: perceptual(images, wanted.expand_as(images)), scale)


def follow_classifier(
    drawing: Drawing, run: str, model_weights: str, labels: Sequence[int] | int | None, scale: float
) -> Guide:
    """Towards a class (Dhariwal & Nichol 2021, Algorithm 2; at scale 10 LDM-8-G).

    run: folder of a run of task noisy_classifier. model_weights: its average "ema", or as of `load_run`. labels:
    one for all images, or one for each equal share of them in turn; None: the images' own input `label`. Raises
    EvaluationError where the run isn't a classifier of the same noisy latents, and for labels that don't fit.
    """
    image_model = drawing.source.image_model
    found = load_classifier(Path(run), image_model.device, model_weights)
    _check_same_latents(drawing.source, found, run)
    latent_side = drawing.size // image_model.first_stage.autoencoder.downsampling
    if latent_side % found.model.stride:
        stride = found.model.stride
        raise EvaluationError(f"guide.run={run}: it takes latents of a multiple of {stride} a side, not {latent_side}")
    wanted = _labels(drawing, found.label, labels).to(image_model.device)

    def log_probabilities(z_t: Tensor, t: Tensor) -> Tensor:
        return found.model(z_t, t).log_softmax(1)

    def guide(denoiser: Denoiser, rows: slice) -> Denoiser:
        return classifier(denoiser, log_probabilities, wanted[rows], scale, image_model.schedule)

    return guide


def _towards(drawing: Drawing, distance: Distance, scale: float) -> Guide:
    image_model = drawing.source.image_model
    decode = image_model.first_stage.decode_differentiably
    return lambda denoiser, rows: post_hoc(denoiser, decode, distance, image_model.schedule, scale)


def _picture(drawing: Drawing, image: str, size: int) -> Tensor:
    """float32 [1, 3, size, size] in [-1, 1]."""
    pixels = read_picture(Path(image), "guide.image", size)[None].to(drawing.source.image_model.device)
    return pixels.float() / 127.5 - 1


def _labels(drawing: Drawing, label: Label, labels: Sequence[int] | int | None) -> Tensor:
    """int64 [N]."""
    if labels is None:
        if LABEL not in drawing.inputs:
            raise EvaluationError(f"guide.labels=null: the run has no input {LABEL}; give classes: guide.labels=[3,7]")
        labels = drawing.inputs[LABEL].tolist()
    given = [labels] if isinstance(labels, int) else labels
    if not given or drawing.count % len(given):
        raise EvaluationError(f"guide.labels={labels}: {drawing.count} images need one label, or one for each share")
    try:
        parsed = torch.stack([label.parse(number) for number in given])
    except DataError as error:
        raise EvaluationError(f"guide.labels={labels}: {error}") from error
    return parsed.repeat_interleave(drawing.count // len(given))


def _check_same_latents(loaded: LoadedModel, found: LoadedClassifier, run: str) -> None:
    if not isinstance(loaded, LoadedRun):
        raise EvaluationError(
            f"guide.run={run}: a classifier guides the model of a run, whose latents it was trained on; give run="
        )
    ours = loaded.image_model
    alike = {
        "first_stage.autoencoder": found.first_stage == loaded.config.first_stage.autoencoder,
        "latent scale": abs(found.latent_scale / float(ours.first_stage.scale) - 1) < 1e-4,
        "schedule": torch.equal(found.schedule.alpha_bar, ours.schedule.alpha_bar),
    }
    other = [name for name, same in alike.items() if not same]
    if other:
        raise EvaluationError(
            f"guide.run={run}: trained with another {' and '.join(other)} than the run that draws; train a classifier "
            "with the same (the run's checkpoint tells the latent scale, first_stage.scale sets it)"
        )
