"""One rank's whole job, for first stages and for diffusion on them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hydra.utils import instantiate
from safetensors.torch import load_file

from data.batch import Batch
from data.loader import Loader
from evaluation.first_stage import load_first_stage
from evaluation.weights import WeightsError
from models.autoencoder import IdentityAutoencoder
from models.latent_diffusion import FirstStage
from models.schedule import linear
from tests.training.conftest import OnRanks
from tests.training.runs import composed
from training.build import build_loader
from training.checkpoint_files import Reader
from training.dataset import training_sources
from training.distributed import Distributed
from training.engine import Engine
from training.fit import estimate_latent_scale, train_and_report
from training.noise import normal
from training.tasks.latents import LatentTask

WEIGHTS = "first_stage.safetensors"
ALONE = Distributed(rank=0, world=1, local_rank=0, device=torch.device("cpu"))
VQ = (
    "~first_stage.autoencoder",
    "+first_stage.autoencoder={_target_: models.autoencoder.AutoencoderVQ, channels: 16, channel_multipliers: [1, 2], "
    "residual_blocks: 1, latent_channels: 4, codebook_entries: 512}",
)


def of_first_stage(overrides: list[str], folder: Path) -> list[str]:
    """A diffusion run's overrides with the VQ first stage in `folder` in the place of its own."""
    kept = [override for override in overrides if not override.startswith("first_stage.autoencoder.")]
    return [*kept, *VQ, f"first_stage.weights={folder / WEIGHTS}"]


def work(ranks: Distributed, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Trains by these overrides in `folder`; returns whether it finished."""
    folder.mkdir(parents=True, exist_ok=True)
    return {"finished": train_and_report(composed([*overrides, f"run.folder={folder}", "run.name=test"]), ranks)}


def scale_of(run: Path, step: int) -> float:
    """The latent scale that a checkpoint keeps."""
    return float(Reader(run / "checkpoints" / f"step-{step:08d}").manifest.extra["latent_scale"])


@pytest.fixture(scope="module")
def vq_run(tiny_vq: list[str], on_ranks: OnRanks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a VQ first stage."""
    folder = tmp_path_factory.mktemp("vq")
    assert on_ranks(1, work, [*tiny_vq, "steps=3", "monitor.every=2"], folder)["finished"]
    return folder


def test_a_vq_run_leaves_its_first_stage_pictures_and_measures(vq_run: Path, tiny_vq: list[str]) -> None:
    rows = [json.loads(line) for line in (vq_run / "metrics.jsonl").read_text().splitlines()]
    looks = [row["step"] for row in rows if "eval/psnr" in row and "eval/ssim" in row]
    assert looks == [2, 3]
    assert [path.name for path in sorted((vq_run / "samples").glob("*.png"))] == [
        "step-00000002.png",
        "step-00000003.png",
    ]
    assert (vq_run / "report.html").exists()
    first_stage = load_first_stage(instantiate(composed(tiny_vq).model), str(vq_run / WEIGHTS), None)
    checkpoint = Reader(vq_run / "checkpoints" / "step-00000003")
    for name, tensor in first_stage.autoencoder.state_dict().items():
        ema = checkpoint.tensor("model", "ema", f"autoencoder.{name}")
        torch.testing.assert_close(tensor, ema.half().float(), rtol=0, atol=0, msg=name)
    assert load_file(vq_run / WEIGHTS).keys() == first_stage.autoencoder.state_dict().keys()


def first_latents(overrides: list[str]) -> torch.Tensor:
    """Unscaled latents of the images of step 0."""
    config = composed(overrides)
    first_stage: FirstStage = instantiate(config.first_stage)
    storage = instantiate(config.data.storage)
    batch = build_loader(config, training_sources(config, storage), storage, ALONE).step(0)
    shape = first_stage.latent_shape(*batch.images.shape[-2:])
    return first_stage.encode(batch.images, normal(config.run.seed, "posterior", batch.numbers.tolist(), shape))


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_the_latent_scale_is_estimated_once_and_kept(
    kind: str, vq_run: Path, tiny_diffusion: list[str], tmp_path: Path, on_ranks: OnRanks
) -> None:
    overrides = of_first_stage(tiny_diffusion, vq_run) if kind == "vq" else tiny_diffusion
    overrides = [*overrides, "checkpoint.every=1"]
    on_ranks(1, work, [*overrides, "steps=1"], tmp_path / "run")
    latents = first_latents([*overrides, "run.name=test"])
    assert scale_of(tmp_path / "run", 1) == pytest.approx(1 / latents.std().item(), rel=1e-4)
    # The first batch is another one now; what the run goes on with isn't.
    on_ranks(1, work, [*overrides, "steps=2", "data.flip=true", "run.seed=1"], tmp_path / "run")
    assert scale_of(tmp_path / "run", 2) == scale_of(tmp_path / "run", 1)


def test_a_latent_scale_that_is_given_is_used(
    vq_run: Path, tiny_diffusion: list[str], tmp_path: Path, on_ranks: OnRanks
) -> None:
    overrides = [*of_first_stage(tiny_diffusion, vq_run), "first_stage.scale=0.18215", "steps=1"]
    on_ranks(1, work, overrides, tmp_path)
    assert scale_of(tmp_path, 1) == pytest.approx(0.18215)


def test_latents_without_deviation_are_named() -> None:
    """As of a first stage that gives NaN, or pictures of one colour."""
    white = Batch(
        torch.full((2, 3, 8, 8), 255, dtype=torch.uint8), {}, ["", ""], torch.tensor([0, 1]), torch.tensor([0, 0])
    )
    first_stage = FirstStage(IdentityAutoencoder(3), 1.0)
    engine = cast(Engine, SimpleNamespace(device=torch.device("cpu")))
    task = LatentTask(engine, first_stage, linear(0.00085, 0.012), seed=0)
    with pytest.raises(WeightsError, match=r"first_stage\.weights: latents of samples \[0, 1\] deviate by 0\.0"):
        estimate_latent_scale(task, cast(Loader, SimpleNamespace(step=lambda step: white)))
