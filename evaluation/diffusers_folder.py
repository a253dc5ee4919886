"""A model as the folder that diffusers' `DiffusionPipeline.from_pretrained` opens, and back.

Which pipeline it is follows from what the model is conditioned on; see `pipeline_for`. Layout: model_index.json, a
folder with config.json and weights for each network, one for the scheduler (DDIMScheduler) and, where there are
prompts, one for the tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.inputs import Input
from data.inputs.caption import Caption
from data.inputs.label import Label
from data.tokenizer import BertTokenizer
from evaluation.diffusers_tokenizers import read_bert_caption, read_clip_caption, read_json, write_tokenizer
from models.autoencoder import AutoencoderKL, AutoencoderVQ, IdentityAutoencoder
from models.conditioners import Conditioner, Conditioners
from models.conditioners.class_label import ClassLabel
from models.conditioners.class_token import ClassToken
from models.conditioners.clip_text import ClipText
from models.conditioners.text_transformer import TextTransformer
from models.interop import diffusers
from models.latent_diffusion import FirstStage, LatentDiffusion
from models.schedule import NoiseSchedule

CAPTION, LABEL = "caption", "label"  # names of inputs
TOKENS = 77  # LDMTextToImagePipeline pads and cuts every prompt to so many,
DOWNSAMPLING = 8  # and takes latents for so many times smaller than the image's sides that it is given
DIT_CLASSES = 1000  # DiTPipeline's number of no class, from which it guides away
EXPORTABLE = (
    "diffusers has pipelines for captions read by a TextTransformer or ClipText, for labels read by a ClassToken or "
    "ClassLabel, and for models without conditioners"
)


class Places(NamedTuple):
    """Folders of a pipeline's networks; None where it has no such part."""

    unet: str
    first_stage: str | None
    encoder: str | None


PIPELINES = {
    "LDMTextToImagePipeline": Places("unet", "vqvae", "bert"),
    "StableDiffusionPipeline": Places("unet", "vae", "text_encoder"),
    "LDMPipeline": Places("unet", "vqvae", None),
    "DDIMPipeline": Places("unet", None, None),
    "DiTPipeline": Places("transformer", "vae", None),
}


@dataclass(frozen=True)
class PipelineParts:
    """What the folder holds, as ours. It predicts noise. image_size: pixels a side that it draws unless told others."""

    model: LatentDiffusion
    frozen: Conditioners
    first_stage: FirstStage
    schedule: NoiseSchedule
    inputs: Mapping[str, Input]
    image_size: int

    def conditioners(self) -> dict[str, Conditioner]:
        """All of them by the name of their input."""
        return self.model.conditioners.by_input() | self.frozen.by_input()


def pipeline_for(parts: PipelineParts) -> str:
    """Name of the pipeline that draws what this model does.

    Raises ValueError, naming the setting, for a model that every pipeline would run otherwise than we do.
    """
    found = {name: type(conditioner).__name__ for name, conditioner in parts.conditioners().items()}
    identity = isinstance(parts.first_stage.autoencoder, IdentityAutoencoder)
    if identity and (found or parts.first_stage.scale != 1):
        raise ValueError(
            f"first_stage.autoencoder is IdentityAutoencoder with scale {float(parts.first_stage.scale)} and "
            f"conditioners {found}: diffusers draws pixels only without conditioners and with scale 1"
        )
    if not found and parts.model.unet.context_width is None:
        return "DDIMPipeline" if identity else "LDMPipeline"
    if found == {CAPTION: "TextTransformer"}:
        _check_bert(parts)
        return "LDMTextToImagePipeline"
    if found == {LABEL: "ClassToken"}:
        return "LDMTextToImagePipeline"
    if found == {CAPTION: "ClipText"}:
        if not isinstance(parts.first_stage.autoencoder, AutoencoderKL):
            raise ValueError("first_stage.autoencoder is no AutoencoderKL: StableDiffusionPipeline takes no other")
        return "StableDiffusionPipeline"
    if found == {LABEL: "ClassLabel"} and parts.model.unet.context_width is None:
        if parts.model.unet.classes != DIT_CLASSES + 1:
            raise ValueError(
                f"model.unet.classes={parts.model.unet.classes}: DiTPipeline takes class {DIT_CLASSES} for none; only "
                f"{DIT_CLASSES + 1} can be exported"
            )
        return "DiTPipeline"
    raise ValueError(f"conditioners are {found}: {EXPORTABLE}; use format=safetensors")


def write_pipeline(folder: Path, parts: PipelineParts) -> None:
    """Writes the folder's files.

    The pipeline's scheduler takes the steps of our `ddim`, see models.interop.diffusers.scheduler_config.
    Raises ValueError, naming the setting, for a model that no pipeline would run as we do.
    """
    name = pipeline_for(parts)
    places = PIPELINES[name]
    autoencoder, size = parts.first_stage.autoencoder, parts.image_size
    f = autoencoder.downsampling
    unet = diffusers.unet_config(parts.model.unet) | {"sample_size": _sample_size(name, f, size)}
    scheduler = diffusers.scheduler_config(parts.schedule)
    index: dict[str, Any] = {"_class_name": name, "scheduler": ["diffusers", scheduler["_class_name"]]}
    if places.first_stage is not None:
        assert isinstance(autoencoder, AutoencoderKL | AutoencoderVQ)
        config = diffusers.autoencoder_config(autoencoder, float(parts.first_stage.scale)) | {"sample_size": size}
        _write_model(folder / places.first_stage, config, diffusers.state_dict(autoencoder))
        index[places.first_stage] = ["diffusers", config["_class_name"]]
    if places.encoder is not None:
        [(input_name, conditioner)] = parts.conditioners().items()
        config = _encoder_config(conditioner)
        _write_model(folder / places.encoder, config, diffusers.state_dict(conditioner), "model")
        [kind] = config["architectures"]
        index[places.encoder] = ["latent_diffusion" if kind == "LDMBertModel" else "transformers", kind]
        length = getattr(getattr(parts.inputs[input_name], "tokenizer", None), "length", TOKENS)
        tokenizer = write_tokenizer(folder / "tokenizer", parts.inputs[input_name], length)
        index["tokenizer"] = ["transformers", tokenizer]
    if name == "StableDiffusionPipeline":
        index |= {part: [None, None] for part in ("safety_checker", "feature_extractor", "image_encoder")}
        index["requires_safety_checker"] = False
    _write_model(folder / places.unet, unet, diffusers.state_dict(parts.model.unet))
    index[places.unet] = ["diffusers", unet["_class_name"]]
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    _write_json(folder / "model_index.json", index)


def read_pipeline(folder: Path) -> PipelineParts:
    """Reads such a folder, ours or another's, onto the CPU in float32. Weights must be safetensors.

    Raises ValueError when it is no such folder, a file is missing or unreadable, or a part does not fit our models.
    """
    index = read_json(folder / "model_index.json")
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise ValueError(f"{folder}: holds a {name}; only {', '.join(PIPELINES)} can be read")
    places = PIPELINES[name]
    config, weights = _read_model(folder / places.unet)
    if config.get("_class_name") not in ("UNet2DModel", "UNet2DConditionModel"):
        raise ValueError(f"{folder / places.unet}: holds a {config.get('_class_name')}; only UNets can be read")
    unet = diffusers.unet(config, weights)
    if places.first_stage is None:
        first_stage = FirstStage(IdentityAutoencoder(unet.out_channels), 1.0)
    else:
        first_stage = diffusers.first_stage(*_read_model(folder / places.first_stage))
    sample_size = config.get("sample_size")
    if not isinstance(sample_size, int):
        raise ValueError(f"{folder / places.unet}: sample_size={sample_size}; only one number can be read")
    trained: dict[str, Conditioner] = {}
    frozen: dict[str, Conditioner] = {}
    inputs: dict[str, Input] = {}
    if places.encoder is not None:
        conditioner, (input_name, inputs) = _read_encoder(folder, places.encoder, index)
        (frozen if isinstance(conditioner, ClipText) else trained)[input_name] = conditioner
    elif unet.classes is not None:
        trained, inputs = {LABEL: ClassLabel()}, {LABEL: Label(unet.classes - 1)}
    return PipelineParts(
        model=LatentDiffusion(unet, trained).float(),
        frozen=Conditioners(frozen).float().eval().requires_grad_(False),
        first_stage=first_stage.float(),
        schedule=diffusers.noise_schedule(read_json(folder / "scheduler" / "scheduler_config.json")),
        inputs=inputs,
        image_size=_image_size(name, first_stage.autoencoder.downsampling, sample_size),
    )


def _check_bert(parts: PipelineParts) -> None:
    caption, conditioner = parts.inputs[CAPTION], parts.conditioners()[CAPTION]
    if not isinstance(caption, Caption) or not isinstance(caption.tokenizer, BertTokenizer):
        raise ValueError("inputs.caption.tokenizer is no BertTokenizer: a TextTransformer is exported only with one")
    assert isinstance(conditioner, TextTransformer)
    if caption.tokenizer.length != TOKENS or conditioner.length < TOKENS:
        raise ValueError(
            f"inputs.caption has {caption.tokenizer.length} tokens and model.conditioners.caption "
            f"{conditioner.length}: LDMTextToImagePipeline gives every caption {TOKENS}, and other padding changes the "
            f"pictures; train with {TOKENS}, or use format=safetensors"
        )


def _sample_size(pipeline: str, f: int, image_size: int) -> int:
    """What the UNet's sample_size must be for the pipeline to draw images of this size by itself.

    It multiplies sample_size by f for the image's side, and LDMTextToImagePipeline divides that by 8 for the latent's,
    whatever f is.
    """
    side = image_size // f
    if pipeline != "LDMTextToImagePipeline":
        return side
    if side * DOWNSAMPLING % f:
        raise ValueError(f"data.image_size={image_size}: with a first stage of f = {f} this pipeline can't draw it")
    return side * DOWNSAMPLING // f


def _image_size(pipeline: str, f: int, sample_size: int) -> int:
    """Undoes _sample_size."""
    return sample_size * f * f // DOWNSAMPLING if pipeline == "LDMTextToImagePipeline" else sample_size * f


def _encoder_config(conditioner: Conditioner) -> dict[str, Any]:
    if isinstance(conditioner, ClipText):
        return diffusers.clip_config(conditioner)
    if isinstance(conditioner, ClassToken):
        return diffusers.class_config(conditioner)
    assert isinstance(conditioner, TextTransformer)
    return diffusers.text_config(conditioner)


ENCODERS: dict[str, Callable[..., Conditioner]] = {
    "LDMBertModel": diffusers.text_transformer,
    "CLIPTextModel": diffusers.clip_text,
    "OpenAIGPTModel": diffusers.class_token,
}


def _read_encoder(
    folder: Path, place: str, index: Mapping[str, Any]
) -> tuple[Conditioner, tuple[str, dict[str, Input]]]:
    """The conditioner, the name of its input, and that input."""
    _, kind = index.get(place, (None, None))
    if kind not in ENCODERS:
        raise ValueError(f"{folder / place}: holds a {kind}; only {', '.join(ENCODERS)} can be read")
    conditioner = ENCODERS[kind](*_read_model(folder / place, "model"))
    if isinstance(conditioner, ClassToken):
        return conditioner, (LABEL, {LABEL: Label(conditioner.embedding.num_embeddings - 1)})
    if isinstance(conditioner, ClipText):
        return conditioner, (CAPTION, {CAPTION: read_clip_caption(folder / "tokenizer")})
    return conditioner, (CAPTION, {CAPTION: read_bert_caption(folder / "tokenizer", TOKENS)})


def _write_model(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], name: str = "diffusion_pytorch_model"
) -> None:
    _write_json(folder / "config.json", config)
    weights = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    save_file(weights, folder / f"{name}.safetensors", metadata={"format": "pt"})  # transformers asks for that note


def _read_model(folder: Path, name: str = "diffusion_pytorch_model") -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = folder / f"{name}.safetensors"
    try:
        return read_json(folder / "config.json"), load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
