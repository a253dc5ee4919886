"""Whether the parts of a model fit one another and the images, found out without memory for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig, OmegaConf

from data.inputs.label import LABEL, Label
from evaluation.frozen_conditioners import build_frozen_conditioners
from evaluation.run import RAW
from models.autoencoder import Autoencoder, IdentityAutoencoder
from models.noisy_classifier import NoisyClassifier
from models.prediction import PREDICTIONS, check_prediction
from training.checkpoint_files import AVERAGE, BASE_KINDS
from training.checks import neighbours
from training.components import build_optimizer, component, explained
from training.decay_groups import KINDS
from training.errors import ConfigurationError
from training.modules import WithoutInitialisation, parameter_shapes
from training.policy_checks import check_no_decay

if TYPE_CHECKING:
    from models.conditioners import Conditioner
    from models.latent_diffusion import LatentDiffusion


def check_models(config: DictConfig) -> dict[str, dict[str, list[int]]]:
    """Builds the models without memory; raises ConfigurationError when they don't fit the images or one another.

    Returns the shape of every trainable parameter, by engine and name.
    """
    on_latents, diffusion = config.task.name != "autoencoder", config.task.name == "diffusion"
    for key in ("engine", "learning_rate", "data.storage", "checkpoint.storage", "inputs"):
        component(config, key)
    _optimizer_can_be(config)
    if diffusion:
        _prediction_fits_schedule(config)
    if config.data.latents is not None:
        _latents_can_be(config)
    with explained(config, "model"):
        shapes = parameter_shapes(config)
    check_no_decay(config, KINDS, [name for engine in shapes.values() for name in engine])
    with torch.device("meta"), WithoutInitialisation():
        first_stage = component(config, "first_stage.autoencoder" if on_latents else "model")
        model: LatentDiffusion | NoisyClassifier | None = component(config, "model") if on_latents else None
        if not on_latents and not isinstance(first_stage, Autoencoder):
            choices = "choose models.autoencoder.AutoencoderKL or AutoencoderVQ"
            raise ConfigurationError("model", config.model._target_, f"it can't be trained as a first stage; {choices}")
        with explained(config, "frozen_conditioners"):
            frozen = build_frozen_conditioners(config)
    factor, reason = first_stage.downsampling, "the first stage's f"
    if model is not None:
        stride = model.stride if isinstance(model, NoisyClassifier) else model.unet.stride
        reason = f"the first stage's f={factor} x the {'UNet' if diffusion else 'classifier'}'s stride {stride}"
        factor *= stride
    size = config.data.image_size
    if size % factor:
        choices = neighbours(size, factor)
        raise ConfigurationError("data.image_size", size, f"not divisible by {reason} = {factor}; choose {choices}")
    seen = OmegaConf.select(config, "monitor.image_size")
    if seen is not None and (not isinstance(seen, int) or seen < 1 or seen % factor):
        remedy = f"it must be a whole number divisible by {reason} = {factor}, or null for data.image_size"
        raise ConfigurationError("monitor.image_size", seen, remedy)
    if config.data.buckets is not None and (step := config.data.buckets.step) % factor:
        choices = neighbours(step, factor)
        raise ConfigurationError("data.buckets.step", step, f"not divisible by {reason} = {factor}; choose {choices}")
    if isinstance(model, NoisyClassifier):
        _classifier_fits(config, model, first_stage.latent_channels)
    elif model is not None:
        conditioners = {f"model.conditioners.{name}": c for name, c in model.conditioners.by_input().items()}
        conditioners |= {f"frozen_conditioners.{name}": c for name, c in frozen.by_input().items()}
        _inputs_fit(config, conditioners)
        _parts_fit(config, model, conditioners, first_stage.latent_channels, size // first_stage.downsampling)
    return shapes


def _optimizer_can_be(config: DictConfig) -> None:
    averages, taken = config.optimizer.averages, (*BASE_KINDS, RAW)
    if AVERAGE not in averages:
        raise ConfigurationError("optimizer.averages", list(averages), f"monitors look at '{AVERAGE}'; keep it too")
    for name in averages:
        if name in taken or "/" in name:
            remedy = f"give it a name without / that is none of {', '.join(taken)}"
            raise ConfigurationError("optimizer.averages", name, remedy)
        component(config, f"optimizer.averages.{name}")
    build_optimizer(config, [torch.zeros(1)])


def _latents_can_be(config: DictConfig) -> None:
    """Latents say all that the model is to be told of images."""
    with torch.device("meta"), WithoutInitialisation():
        identity = isinstance(component(config, "first_stage.autoencoder"), IdentityAutoencoder)
    inputs = component(config, "inputs")
    needing = [name for name in inputs if inputs[name].needs_image]
    if identity or needing:
        reason = "images are their own latents" if identity else f"inputs.{needing[0]} is made of the image's pixels"
        raise ConfigurationError("data.latents", config.data.latents, f"{reason}; set it to null")


def _classifier_fits(config: DictConfig, model: NoisyClassifier, channels: int) -> None:
    """It takes the latents, of so many channels, and knows the classes of the label."""
    label = component(config, f"inputs.{LABEL}") if LABEL in config.inputs else None
    if not isinstance(label, Label):
        there = sorted(config.inputs) or "none"
        raise ConfigurationError(f"inputs.{LABEL}", None, f"a classifier learns it; inputs has {there}: add it there")
    for key, wanted, value, meaning in (
        ("model.in_channels", channels, model.in_channels, "the channels of the first stage's latents"),
        ("model.classes", label.classes, model.classes, f"the classes of inputs.{LABEL}"),
    ):
        if value != wanted:
            raise ConfigurationError(key, value, f"it must be {wanted}: {meaning}")


def _prediction_fits_schedule(config: DictConfig) -> None:
    schedule = component(config, "schedule")
    try:
        check_prediction(PREDICTIONS[config.task.prediction], schedule)
    except ValueError as error:
        raise ConfigurationError("task.prediction", config.task.prediction, str(error)) from None


def _inputs_fit(config: DictConfig, conditioners: dict[str, Conditioner]) -> None:
    """Every conditioner has its input, and only inputs that are there are dropped."""
    there = sorted(config.inputs)
    for key in conditioners:
        name = key.rpartition(".")[2]
        if name not in there:
            raise ConfigurationError(key, name, f"no input has this name; inputs has {there or 'none'}: add it there")
    for name in config.task.dropout:
        if name not in there:
            raise ConfigurationError(f"task.dropout.{name}", config.task.dropout[name], f"inputs has {there or 'none'}")


def _parts_fit(
    config: DictConfig, model: LatentDiffusion, conditioners: dict[str, Conditioner], channels: int, side: int
) -> None:
    """What conditioners, denoiser and first stage hand to one another has one size.

    channels, side: of the first stage's latents.
    """
    unet, concatenated = model.unet, 0
    labelled = any(c.part == "labels" for c in conditioners.values())
    if labelled != (unet.classes is not None):
        remedy = (
            "it must be set: a conditioner gives labels" if labelled else "it must be null: no conditioner gives any"
        )
        raise ConfigurationError("model.unet.classes", unet.classes, remedy)
    if unet.context_width is not None and not any(c.part == "context" for c in conditioners.values()):
        remedy = "it must be null, or a conditioner be there whose context is attended to"
        raise ConfigurationError("model.unet.context_width", unet.context_width, remedy)
    for key, conditioner in conditioners.items():
        nothing = component(config, f"inputs.{key.rpartition('.')[2]}").nothing()
        if conditioner.part == "context":
            if conditioner.width != unet.context_width:
                remedy = f"it must be {conditioner.width}: the width of {key}"
                raise ConfigurationError("model.unet.context_width", unet.context_width, remedy)
            _length_fits(config, key, conditioner, nothing)
        elif conditioner.part == "channels":
            if config.data.buckets is not None:
                remedy = f"{key} gives channels of one size; set it to null"
                raise ConfigurationError("data.buckets", config.data.buckets, remedy)
            with explained(config, key), torch.no_grad():
                shape = conditioner(nothing[None].to("meta")).shape
            if tuple(shape[2:]) != (side, side):
                remedy = f"it gives {tuple(shape[2:])} and latents are {(side, side)}; change it, or its input's size"
                raise ConfigurationError(key, config_target(config, key), remedy)
            concatenated += shape[1]
    meaning = "the channels of the first stage's latents"
    if concatenated:
        meaning += f", and {concatenated} that conditioners concatenate"
    for key, wanted, value in (
        ("model.unet.in_channels", channels + concatenated, unet.in_channels),
        ("model.unet.out_channels", channels, unet.out_channels),
    ):
        if value != wanted:
            raise ConfigurationError(key, value, f"it must be {wanted}: {meaning}")


def _length_fits(config: DictConfig, key: str, conditioner: Conditioner, nothing: torch.Tensor) -> None:
    """A text encoder has positions for all tokens of its input."""
    length = getattr(conditioner, "length", None)
    if length is not None and nothing.shape[-1] != length:
        name = key.rpartition(".")[2]
        raise ConfigurationError(
            f"inputs.{name}", f"{nothing.shape[-1]} tokens", f"{key} reads {length}: make the two agree"
        )


def config_target(config: DictConfig, key: str) -> str:
    """The class that a part of the configuration names."""
    node = config
    for name in key.split("."):
        node = node[name]
    return str(node.get("_target_"))
