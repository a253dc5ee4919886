"""A model small enough to draw in milliseconds, and a run folder that holds it."""

import io
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from safetensors.torch import save_file

from data.prepare import prepare
from data.sources import HELD_OUT, TRAIN, Sample
from data.stream import Storage
from evaluation.first_stage import save_first_stage
from tests.evaluation.networks import Projection
from training.checkpoint_files import (
    EngineEntry,
    FileEntry,
    Fragment,
    Manifest,
    ParameterEntry,
    folder_name,
    sha256_of,
    tensor_key,
)

STEP = 70
LATENT_SCALE = 0.75


def tiny_config(folder: Path) -> DictConfig:
    """The configuration of a run whose pictures are 16 x 16."""
    return OmegaConf.create(
        {
            "run": {"name": "tiny", "folder": str(folder)},
            "task": {"name": "diffusion", "prediction": "epsilon"},
            "data": {
                "held_out": str(folder.parent / "shards" / "heldout"),
                "embedded_store": False,
                "image_size": 16,
                "storage": {"_target_": "data.stream.Storage"},
                "api_secret": "hunter2",
            },
            "inputs": {
                "caption": {
                    "_target_": "data.inputs.caption.Caption",
                    "tokenizer": {"_target_": "data.tokenizer.BertTokenizer", "length": 8},
                }
            },
            "frozen_conditioners": {},
            "frozen_weights": {},
            "schedule": {
                "_target_": "models.schedule.linear",
                "beta_start": 0.00085,
                "beta_end": 0.012,
            },
            "first_stage": {
                "_target_": "evaluation.first_stage.load_first_stage",
                "weights": str(folder / "first_stage.safetensors"),
                "scale": None,
                "autoencoder": {
                    "_target_": "models.autoencoder.AutoencoderKL",
                    "channels": 8,
                    "channel_multipliers": [1, 1],
                    "residual_blocks": 1,
                    "latent_channels": 4,
                },
            },
            "model": {
                "_target_": "models.latent_diffusion.LatentDiffusion",
                "unet": {
                    "_target_": "models.unet.UNet",
                    "in_channels": 4,
                    "out_channels": 4,
                    "channels": 32,
                    "channel_multipliers": [1, 1],
                    "residual_blocks": 1,
                    "attention_downsamplings": [2],
                    "heads": 2,
                    "context_width": 16,
                },
                "conditioners": {
                    "caption": {
                        "_target_": "models.conditioners.text_transformer.TextTransformer",
                        "vocabulary_size": 30522,
                        "length": 8,
                        "width": 16,
                        "depth": 1,
                        "heads": 2,
                        "head_width": 8,
                    },
                },
            },
        }
    )


def write_checkpoint(folder: Path, parameters: dict[str, torch.Tensor], latent_scale: float) -> None:
    """A complete checkpoint of one rank whose moving average is half of its weights."""
    folder.mkdir(parents=True)
    tensors, entries = {}, {}
    for name, value in parameters.items():
        tensors[tensor_key("model", "param", name)] = value.flatten().contiguous()
        tensors[tensor_key("model", "ema", name)] = (value / 2).flatten().contiguous()
        entries[name] = ParameterEntry(list(value.shape), [Fragment("rank-0.safetensors", 0, value.numel())])
    path = folder / "rank-0.safetensors"
    save_file(tensors, path)
    manifest = Manifest(
        step=STEP,
        images_seen=STEP * 4,
        world=1,
        engines={"model": EngineEntry(STEP, entries)},
        files={path.name: FileEntry(path.stat().st_size, sha256_of(path))},
        extra={"latent_scale": latent_scale},
    )
    (folder / "manifest.json").write_text(manifest.to_json())


def write_run(config: DictConfig) -> Path:
    """The run folder that the configuration names: with its configuration, frozen weights and a checkpoint."""
    folder = Path(config.run.folder)
    folder.mkdir(parents=True)
    OmegaConf.save(config, folder / "config.yaml")
    torch.manual_seed(0)
    if config.first_stage.weights is not None:
        save_first_stage(instantiate(config.first_stage.autoencoder).state_dict(), Path(config.first_stage.weights))
    for name, conditioner in config.frozen_conditioners.items():
        weights = instantiate(conditioner).encoder.state_dict()
        weights["final_layer_norm.weight"] *= 8  # so that captions matter
        save_file(weights, config.frozen_weights[name])
    model = instantiate(config.model)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:  # also those that begin at zero, so that captions matter
            torch.nn.init.normal_(parameter, std=1.0 if name.startswith("conditioner") else 0.1)
    scale = 1.0 if config.first_stage.weights is None else LATENT_SCALE
    write_checkpoint(folder / "checkpoints" / folder_name(STEP), dict(model.state_dict()), scale)
    return folder


@pytest.fixture
def projection() -> Projection:
    """A feature network that takes no time."""
    return Projection()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with configuration, first stage and a checkpoint. Read only: tests that write copy it."""
    return write_run(tiny_config(tmp_path_factory.mktemp("run") / "tiny"))


KL_F8 = {"channel_multipliers": [1, 1, 1, 1]}
VQ_F4 = {
    "_target_": "models.autoencoder.AutoencoderVQ", "channel_multipliers": [1, 1, 1], "latent_channels": 3,
    "codebook_entries": 32,
}  # fmt: skip
PLAIN_UNET = {"context_width": None, "heads": None, "head_channels": 16}
CLASSES = "data.inputs.label.Label"
KINDS: dict[str, dict[str, Any]] = {
    # What diffusers' pipeline takes for granted: 77 tokens.
    "captions": {
        "inputs": {"caption": {"tokenizer": {"length": 77}}},
        "model": {"conditioners": {"caption": {"length": 77}}},
        "first_stage": {"autoencoder": KL_F8},
    },
    "clip": {
        "inputs": {
            "caption": {"tokenizer": {"_target_": "data.clip_tokenizer.ClipTokenizer", "length": 77, "padding": "end"}}
        },
        "frozen_conditioners": {
            "caption": {
                "_target_": "models.conditioners.clip_text.ClipText",
                "encoder": {
                    "_target_": "models.conditioners.clip_text.clip_text_encoder",
                    "width": 16,
                    "depth": 2,
                    "heads": 2,
                },
            }
        },
        "model": {"conditioners": {"caption": None}},
        "first_stage": {"autoencoder": KL_F8},
    },
    "class tokens": {
        "inputs": {"caption": None, "label": {"_target_": CLASSES, "classes": 10}},
        "model": {
            "unet": {"in_channels": 3, "out_channels": 3},
            "conditioners": {
                "caption": None,
                "label": {"_target_": "models.conditioners.class_token.ClassToken", "classes": 11, "width": 16},
            },
        },
        "first_stage": {"autoencoder": VQ_F4},
    },
    "embedded classes": {
        "inputs": {"caption": None, "label": {"_target_": CLASSES, "classes": 1000}},
        "model": {
            # By scale and shift, classes reach levels of width 32.
            "unet": {**PLAIN_UNET, "in_channels": 3, "out_channels": 3, "classes": 1001, "scale_shift_norm": True},
            "conditioners": {"caption": None, "label": {"_target_": "models.conditioners.class_label.ClassLabel"}},
        },
        "first_stage": {"autoencoder": VQ_F4},
    },
    "unconditional": {
        "inputs": {"caption": None},
        "model": {"unet": {**PLAIN_UNET, "in_channels": 3, "out_channels": 3}, "conditioners": {"caption": None}},
        "first_stage": {"autoencoder": VQ_F4},
    },
    "unconditional KL": {
        "inputs": {"caption": None},
        "model": {"unet": PLAIN_UNET, "conditioners": {"caption": None}},
    },
    "pixels": {
        "inputs": {"caption": None},
        "model": {"unet": {**PLAIN_UNET, "in_channels": 3, "out_channels": 3}, "conditioners": {"caption": None}},
        "first_stage": {"weights": None, "autoencoder": None},
        "data": {"image_size": 16},
    },
}
"""What runs of each kind have otherwise than tiny_config; None takes a part out."""


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run folder of each of KINDS, made when it is asked for. Read only."""

    @cache
    def made(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("run") / kind.replace(" ", "_")
        config = OmegaConf.merge(tiny_config(folder), {"data": {"image_size": 64}}, KINDS[kind])
        assert isinstance(config, DictConfig)
        for part in (config.inputs, config.model.conditioners):
            for name in [name for name in part if part[name] is None]:
                del part[name]
        if config.first_stage.autoencoder is None:
            config.first_stage.autoencoder = {"_target_": "models.autoencoder.IdentityAutoencoder"}
        config.frozen_weights = {name: str(folder / f"{name}.safetensors") for name in config.frozen_conditioners}
        return write_run(config)

    return made


@pytest.fixture(scope="session")
def pipeline_run(kinds: Callable[[str], Path]) -> Path:
    """A run that draws from captions, and that diffusers has a pipeline for."""
    return kinds("captions")


@pytest.fixture
def writable_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that may be written to."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name in ("config.yaml", "checkpoints", "first_stage.safetensors"):
        (folder / name).symlink_to(tiny_run / name)
    return folder


COLOURS = 11


class Colours:
    """Eleven pictures of one colour each; all are held out."""

    name = "colours"
    attribution = "nobody"
    settings: Mapping[str, object] = {}
    dropped: Mapping[str, int] = {}
    splits = (TRAIN, HELD_OUT)

    def __len__(self) -> int:
        return COLOURS

    def key(self, i: int) -> str:
        return f"{i:03d}"

    def __getitem__(self, i: int) -> Sample:
        encoded = io.BytesIO()
        Image.new("RGB", (20, 16), (20 * i, 255 - 20 * i, 90)).save(encoded, "PNG")
        return Sample(self.key(i), encoded.getvalue(), "png", f"colour number {i}", split=HELD_OUT)


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of shards of Colours."""
    folder = tmp_path_factory.mktemp("colours")
    prepare(Colours(), str(folder), Storage(), 4)
    return folder
