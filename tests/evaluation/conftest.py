"""A model small enough to draw in milliseconds, and a run folder that holds it."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file

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


def write_checkpoint(folder: Path, parameters: dict[str, torch.Tensor]) -> None:
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
        extra={"latent_scale": LATENT_SCALE},
    )
    (folder / "manifest.json").write_text(manifest.to_json())


def write_run(config: DictConfig) -> Path:
    """The run folder that the configuration names: with its configuration, first stage and a checkpoint."""
    folder = Path(config.run.folder)
    folder.mkdir(parents=True)
    OmegaConf.save(config, folder / "config.yaml")
    torch.manual_seed(0)
    save_first_stage(instantiate(config.first_stage.autoencoder).state_dict(), folder / "first_stage.safetensors")
    model = instantiate(config.model)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:  # also those that begin at zero, so that captions matter
            torch.nn.init.normal_(parameter, std=1.0 if name.startswith("conditioner") else 0.1)
    write_checkpoint(folder / "checkpoints" / folder_name(STEP), dict(model.state_dict()))
    return folder


@pytest.fixture
def projection() -> Projection:
    """A feature network that takes no time."""
    return Projection()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with configuration, first stage and a checkpoint. Read only: tests that write copy it."""
    return write_run(tiny_config(tmp_path_factory.mktemp("run") / "tiny"))


@pytest.fixture(scope="session")
def pipeline_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As tiny_run, with what diffusers' pipeline takes for granted: 77 tokens, and images 8 times a latent's size."""
    config = tiny_config(tmp_path_factory.mktemp("run") / "pipeline")
    config.inputs.caption.tokenizer.length = config.model.conditioners.caption.length = 77
    config.first_stage.autoencoder.channel_multipliers = [1, 1, 1, 1]
    config.data.image_size = 64
    return write_run(config)
