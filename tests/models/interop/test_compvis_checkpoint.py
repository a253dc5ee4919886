"""A whole published checkpoint is read into its parts and written back, bit for bit, and runs no code."""

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.autoencoder import AutoencoderKL
from models.conditioners.text_transformer import TextTransformer
from models.interop import compvis
from models.schedule import linear
from models.unet import UNet

UNET = {
    "in_channels": 4, "out_channels": 4, "model_channels": 8, "attention_resolutions": [1], "num_res_blocks": 1,
    "channel_mult": [1, 2], "num_heads": 2, "use_spatial_transformer": True, "context_dim": 8,
}  # fmt: skip
FIRST_STAGE = {
    "embed_dim": 4,
    "ddconfig": {
        "z_channels": 4, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 8, "ch_mult": [1, 2],
        "num_res_blocks": 1, "attn_resolutions": [8],
    },
}  # fmt: skip
TEXT = {"num_tokens": 20, "max_seq_len": 7, "dim": 8, "depth": 2, "heads": 2, "dim_head": 4}


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """A whole state dict as published, of small models, with a moving average and a schedule."""
    torch.manual_seed(0)
    unet = compvis.state_dict(UNet(4, 4, 8, [1, 2], 1, [1], heads=2, context_width=8))
    first_stage = compvis.state_dict(AutoencoderKL(8, [1, 2], 1, 4, attention_levels=[1]))
    text = compvis.state_dict(TextTransformer(20, 7, 8, 2, 2, 4))
    text |= {"to_logits.weight": torch.randn(20, 8), "to_logits.bias": torch.randn(20)}
    schedule = linear(0.00085, 0.012)
    return {
        "betas": schedule.betas.float(),
        "alphas_cumprod": schedule.alpha_bar.float(),
        "sqrt_alphas_cumprod": schedule.alpha_bar.sqrt().float(),
        "scale_factor": torch.tensor(0.18215),
        **{f"model.diffusion_model.{name}": v for name, v in unet.items()},
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
        **{f"model_ema.diffusion_model{name.replace('.', '')}": v / 2 for name, v in unet.items()},
        **{f"first_stage_model.{name}": v for name, v in first_stage.items()},
        "first_stage_model.loss.logvar": torch.zeros(()),
        **{f"cond_stage_model.transformer.{name}": v for name, v in text.items()},
    }


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def lightning_file(state_dict: dict[str, Tensor], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file as training with pytorch-lightning leaves it: a class of its own is a key of the callbacks' states."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
        patch.setitem(sys.modules, "pytorch_lightning.callbacks", types.ModuleType("pytorch_lightning.callbacks"))
        patch.setitem(sys.modules, module.__name__, module)
        states = {callback: {"monitor": "val/loss", "best": callback(), "score": torch.tensor(0.1).numpy()[()]}}
        torch.save({"epoch": 3, "callbacks": states, "optimizer_states": [], "state_dict": state_dict}, path)


@pytest.mark.parametrize("kind", ["safetensors", "ckpt", "older ckpt", "lightning"])
def test_what_is_loaded_is_saved_bit_for_bit(
    published: dict[str, Tensor], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.ckpt")
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(published, path)
    elif kind == "lightning":
        lightning_file(published, path, monkeypatch)
    else:
        torch.save({"state_dict": published}, path, _use_new_zipfile_serialization=kind == "ckpt")
    loaded = compvis.load(path)
    assert equal(loaded.state_dict(), published)
    compvis.save(loaded, tmp_path / "again.safetensors")
    assert equal(compvis.load(tmp_path / "again.safetensors").state_dict(), published)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, "again.safetensors"])


def test_the_parts_are_told_apart(published: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(published, tmp_path / "bare.ckpt")  # without a state_dict around it
    loaded = compvis.load(tmp_path / "bare.ckpt")
    assert equal(loaded.unet, compvis.below("model.diffusion_model.", published))
    assert equal(loaded.unet_ema, {name: v / 2 for name, v in loaded.unet.items()})
    text = compvis.below("transformer.", loaded.conditioner)
    assert set(compvis.unused(text)) == {"to_logits.weight", "to_logits.bias"}
    assert set(compvis.unused(loaded.first_stage)) == {"loss.logvar"}
    rebuilt = compvis.Checkpoint(
        unet=compvis.state_dict(compvis.unet(UNET, loaded.unet)),
        first_stage=compvis.state_dict(compvis.first_stage(FIRST_STAGE, loaded.first_stage))
        | compvis.unused(loaded.first_stage),
        conditioner={
            f"transformer.{name}": v
            for name, v in (compvis.state_dict(compvis.text_transformer(TEXT, text)) | compvis.unused(text)).items()
        },
        unet_ema=compvis.state_dict(compvis.unet(UNET, loaded.unet_ema)),
        ema_counters=loaded.ema_counters,
        schedule=loaded.schedule,
        scale_factor=loaded.scale_factor,
    )
    assert equal(rebuilt.state_dict(), published)
    assert set(loaded.schedule) == {"betas", "alphas_cumprod", "sqrt_alphas_cumprod"}
    assert loaded.scale_factor is not None
    assert float(loaded.scale_factor) == pytest.approx(0.18215)
    assert int(loaded.ema_counters["num_updates"]) == 7


def test_a_checkpoint_without_average_schedule_and_scale_is_whole(published: dict[str, Tensor], tmp_path: Path) -> None:
    unet = {name: v for name, v in published.items() if name.startswith("model.diffusion_model.")}
    torch.save({"state_dict": unet}, tmp_path / "a.ckpt")
    loaded = compvis.load(tmp_path / "a.ckpt")
    assert loaded == compvis.Checkpoint(unet=loaded.unet)
    assert equal(loaded.state_dict(), unet)


def test_no_two_released_weights_have_one_average(golden: Any) -> None:
    for released in [golden.released, *golden.released_unets.values()]:
        unet = {name: torch.empty(shape, device="meta") for name, shape in released["unet"]["state_dict"].items()}
        assert len(compvis.Checkpoint(unet=unet, unet_ema=unet).state_dict()) == 2 * len(unet)


class Malicious:
    """Runs a command wherever it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_and_runs_none(
    published: dict[str, Tensor], tmp_path: Path, zipped: bool
) -> None:
    path, victim = tmp_path / "evil.ckpt", tmp_path / "was_here"
    content = {"state_dict": published, "callbacks": Malicious(victim)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"evil\.ckpt: holds more than weights.*mkdir.*torch\.save"):
        compvis.load(path)
    assert not victim.exists()
    torch.load(path, weights_only=False)  # it would have
    assert victim.exists()


def test_unknown_names_and_an_average_of_another_model_are_named(published: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "wrong.ckpt"
    torch.save({**published, "control_model.a": torch.zeros(1), "step": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"2 entries.*control_model\.a.*step"):
        compvis.load(path)
    torch.save({**published, "model_ema.diffusion_modelsurplus": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"too many.*diffusion_modelsurplus"):
        compvis.load(path)
    torch.save({**published, "epoch": 3}, path)
    with pytest.raises(ValueError, match=r"'epoch'.*no tensors"):
        compvis.load(path)


def test_names_that_are_the_same_without_dots_are_refused() -> None:
    weights = {"a.bc": torch.zeros(1), "ab.c": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"ab\.c and a\.bc"):
        compvis.Checkpoint(unet=weights, unet_ema=weights).state_dict()
    with pytest.raises(ValueError, match=r"lacks \['b'\], has too many \['c'\]"):
        compvis.Checkpoint(unet={"b": torch.zeros(1)}, unet_ema={"c": torch.zeros(1)}).state_dict()


@pytest.mark.parametrize("name", ["absent.ckpt", "torn.ckpt", "torn.safetensors", "absent.safetensors"])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str) -> None:
    if name.startswith("torn"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(ValueError, match=name):
        compvis.load(tmp_path / name)
