"""A text-to-image model as the folder that diffusers' `DiffusionPipeline.from_pretrained` opens, and back.

Layout: model_index.json, and for each part its settings and weights:
    unet/       config.json, diffusion_pytorch_model.safetensors      UNet2DConditionModel
    vqvae/      config.json, diffusion_pytorch_model.safetensors      AutoencoderKL or VQModel
    bert/       config.json, model.safetensors                        LDMBertModel
    tokenizer/  tokenizer_config.json, vocab.txt                      BertTokenizer
    scheduler/  scheduler_config.json                                 DDIMScheduler
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.tokenizer import BertTokenizer
from models.autoencoder import AutoencoderKL, AutoencoderVQ
from models.conditioners.text_transformer import TextTransformer
from models.interop import diffusers
from models.latent_diffusion import FirstStage, LatentDiffusion
from models.schedule import NoiseSchedule

PIPELINE = "LDMTextToImagePipeline"
CAPTION = "caption"  # the name of the input
TOKENS = 77  # the pipeline pads and cuts every caption to so many,
DOWNSAMPLING = 8  # and takes latents for so many times smaller than images, whatever the models' settings


@dataclass(frozen=True)
class PipelineParts:
    """What the folder holds, as ours."""

    model: LatentDiffusion
    first_stage: FirstStage
    schedule: NoiseSchedule
    tokenizer: BertTokenizer


def caption_transformer(model: LatentDiffusion) -> TextTransformer | None:
    """The text transformer that reads captions; None for an unconditional model.

    Raises ValueError when the model is conditioned on anything else.
    """
    conditioners = model.conditioners.by_input()
    if not conditioners and model.unet.context_width is None:
        return None
    found = {name: type(conditioner).__name__ for name, conditioner in conditioners.items()}
    transformer = conditioners.get(CAPTION)
    if len(found) != 1 or not isinstance(transformer, TextTransformer):
        raise ValueError(f"model.conditioners are {found}: only one TextTransformer, for captions, can be exported")
    return transformer


def trained_autoencoder(first_stage: FirstStage) -> AutoencoderKL | AutoencoderVQ:
    """The first stage's KL or VQ autoencoder. Raises ValueError for the identity, which other formats don't know."""
    autoencoder = first_stage.autoencoder
    if not isinstance(autoencoder, AutoencoderKL | AutoencoderVQ):
        raise ValueError(f"first_stage.autoencoder is {type(autoencoder).__name__}: only KL and VQ can be exported")
    return autoencoder


def write_pipeline(folder: Path, parts: PipelineParts, image_size: int) -> None:
    """Writes the folder's files. image_size: pixels that the pipeline draws unless it is told others.

    The pipeline's scheduler takes the steps of our `ddim`, see models.interop.diffusers.scheduler_config.
    Raises ValueError, naming the setting, for a model that the pipeline would run otherwise than we do.
    """
    conditioner, autoencoder = caption_transformer(parts.model), trained_autoencoder(parts.first_stage)
    if conditioner is None:
        raise ValueError(f"the model has no conditioner: {PIPELINE} needs a TextTransformer")
    if parts.tokenizer.length != TOKENS or conditioner.length < TOKENS:
        raise ValueError(
            f"inputs.caption has {parts.tokenizer.length} tokens and model.conditioners.caption {conditioner.length}: "
            f"{PIPELINE} gives every caption {TOKENS}, and other padding changes the pictures; train with {TOKENS}, or "
            "use format=safetensors"
        )
    vqvae = diffusers.autoencoder_config(autoencoder, float(parts.first_stage.scale)) | {"sample_size": image_size}
    if autoencoder.downsampling != DOWNSAMPLING:
        raise ValueError(
            f"first_stage.autoencoder makes images {autoencoder.downsampling} times smaller: {PIPELINE} takes "
            f"{DOWNSAMPLING} for granted; use format=safetensors"
        )
    unet = diffusers.unet_config(parts.model.unet) | {"sample_size": image_size // DOWNSAMPLING}
    scheduler = diffusers.scheduler_config(parts.schedule)
    _write_model(folder / "unet", unet, diffusers.state_dict(parts.model.unet))
    _write_model(folder / "vqvae", vqvae, diffusers.state_dict(autoencoder))
    _write_model(folder / "bert", diffusers.text_config(conditioner), diffusers.state_dict(conditioner), "model")
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": TOKENS}
    _write_json(folder / "tokenizer" / "tokenizer_config.json", tokenizer)
    shutil.copyfile(parts.tokenizer.vocabulary, folder / "tokenizer" / "vocab.txt")
    index = {
        "_class_name": PIPELINE,
        "unet": ["diffusers", unet["_class_name"]],
        "vqvae": ["diffusers", vqvae["_class_name"]],
        "bert": ["latent_diffusion", "LDMBertModel"],
        "tokenizer": ["transformers", "BertTokenizer"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
    }
    _write_json(folder / "model_index.json", index)


def read_pipeline(folder: Path) -> PipelineParts:
    """Reads such a folder, ours or another's, onto the CPU. Weights must be safetensors.

    Raises ValueError when it is no such folder, a file is missing or unreadable, or a part does not fit our models.
    """
    index = _read_json(folder / "model_index.json")
    if index.get("_class_name") != PIPELINE:
        raise ValueError(f"{folder}: holds a {index.get('_class_name')}; only {PIPELINE} can be read")
    unet = diffusers.unet(*_read_model(folder / "unet"))
    conditioner = diffusers.text_transformer(*_read_model(folder / "bert", "model"))
    return PipelineParts(
        model=LatentDiffusion(unet, {CAPTION: conditioner}),
        first_stage=diffusers.first_stage(*_read_model(folder / "vqvae")),
        schedule=diffusers.noise_schedule(_read_json(folder / "scheduler" / "scheduler_config.json")),
        tokenizer=BertTokenizer(TOKENS, folder / "tokenizer" / "vocab.txt"),
    )


def _write_model(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], name: str = "diffusion_pytorch_model"
) -> None:
    _write_json(folder / "config.json", config)
    weights = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    save_file(weights, folder / f"{name}.safetensors", metadata={"format": "pt"})  # transformers asks for that note


def _read_model(folder: Path, name: str = "diffusion_pytorch_model") -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = folder / f"{name}.safetensors"
    try:
        return _read_json(folder / "config.json"), load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {type(content).__name__}; it must be settings by name")
    return content
