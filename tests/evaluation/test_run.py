"""A run folder becomes the model that was trained, or an error that says what is missing."""

import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from evaluation.errors import EvaluationError
from evaluation.first_stage import save_first_stage
from evaluation.run import load_run
from tests.evaluation.conftest import write_checkpoint

STEP, LATENT_SCALE = 70, 0.75  # as the fixture writes them


def test_weights_step_and_latent_scale_are_the_checkpoints(tiny_run: Path) -> None:
    raw, ema = load_run(tiny_run, "cpu", "raw"), load_run(tiny_run, "cpu")
    assert raw.step == ema.step == STEP
    assert float(raw.image_model.first_stage.scale) == LATENT_SCALE
    assert raw.image_size == 16
    both = (loaded.image_model.model.named_parameters() for loaded in (raw, ema))
    for (name, p), (_, q) in zip(*both, strict=True):
        torch.testing.assert_close(p / 2, q, msg=name)
        assert not q.requires_grad
    assert raw.inputs["caption"].parse("a red apple").shape == (8,)


def test_the_newest_whole_checkpoint_is_read(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    torn = run / "checkpoints" / "step-00000090"
    shutil.copytree(run / "checkpoints" / f"step-{STEP:08d}", torn)
    (torn / "rank-0.safetensors").write_bytes(b"torn")
    assert load_run(run, "cpu").step == STEP
    shutil.rmtree(run / "checkpoints" / f"step-{STEP:08d}")
    with pytest.raises(EvaluationError, match="no complete checkpoint"):
        load_run(run, "cpu")


def test_what_cannot_be_loaded_is_named(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no config\.yaml"):
        load_run(tmp_path, "cpu")
    with pytest.raises(EvaluationError, match=r"weights=best: .* has these: raw, ema"):
        load_run(tiny_run, "cpu", "best")
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    config = OmegaConf.load(run / "config.yaml")
    config.model.unet.channels = 64
    OmegaConf.save(config, run / "config.yaml")
    with pytest.raises(EvaluationError, match="size mismatch"):
        load_run(run, "cpu")
    config.task.prediction = "x_0"
    OmegaConf.save(config, run / "config.yaml")
    with pytest.raises(EvaluationError, match=r"task\.prediction=x_0; choose one of epsilon, v, z_0"):
        load_run(run, "cpu")
    config.task.name = "autoencoder"
    OmegaConf.save(config, run / "config.yaml")
    with pytest.raises(EvaluationError, match="its task is autoencoder"):
        load_run(run, "cpu")


def test_weights_that_are_not_finite_are_named(tiny_run: Path, tmp_path: Path) -> None:
    """Of a run that diverged, and of a first stage."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    loaded = load_run(run, "cpu", "raw").image_model
    state = dict(loaded.model.state_dict())
    state["unet.stem.weight"][0, 0, 0, 0] = float("nan")
    write_checkpoint(run / "checkpoints" / "step-00000080", state, float(loaded.first_stage.scale))
    with pytest.raises(EvaluationError, match=r"step-00000080 holds infinite numbers, .* in unet\.stem\.weight"):
        load_run(run, "cpu")
    shutil.rmtree(run / "checkpoints" / "step-00000080")
    weights = dict(loaded.first_stage.autoencoder.state_dict())
    weights["decoder.stem.bias"][0] = float("inf")
    save_first_stage(weights, run / "first_stage.safetensors")
    OmegaConf.save(
        OmegaConf.merge(
            OmegaConf.load(run / "config.yaml"), {"first_stage": {"weights": str(run / "first_stage.safetensors")}}
        ),
        run / "config.yaml",
    )
    with pytest.raises(EvaluationError, match=r"first_stage\.weights=.*: decoder\.stem\.bias holds infinite numbers"):
        load_run(run, "cpu")
