"""A model draws the same from wherever it is read: a run, a checkpoint, a folder of diffusers, a published file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageChops
from safetensors.torch import load_file

from evaluation import export, published, sample
from models.interop import compvis
from tests.models.conftest import Golden
from training.modules import WithoutInitialisation

ASKED = {
    "captions": "prompts=[Red apple]",
    "clip": "prompts=[Red apple]",
    "class tokens": "inputs.label=[3]",
    "embedded classes": "inputs.label=[3]",
    "unconditional": "inputs={}",
    "pixels": "inputs={}",
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def run(command: str, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "argv", [f"ldm {command}", *arguments])
        {"sample": sample, "export": export}[command].main()


def picture(kind: str, output: Path, *source: str) -> Image.Image:
    """What `ldm sample` draws."""
    run("sample", *source, ASKED[kind], "steps=3", "seed=4", "guidance_scale=2", f"output={output}")
    with Image.open(output / "grid.png") as image:
        return image.convert("RGB")


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and ImageChops.difference(a, b).getbbox() is None


@pytest.fixture(scope="module")
def drawn(kinds: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Image.Image]:
    """What each kind of run draws with the weights of its last step."""
    return cache(lambda kind: picture(kind, tmp_path_factory.mktemp("run"), f"run={kinds(kind)}", "model_weights=raw"))


@pytest.fixture
def tiny(kinds: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes the settings of a kind of tiny run the only experiment; returns what to type for it."""

    def named(kind: str) -> str:
        config = OmegaConf.load(kinds(kind) / "config.yaml")
        monkeypatch.setattr(published, "experiment_config", lambda name: config)
        return "like=tiny"

    return named


@pytest.mark.parametrize("kind", ASKED)
def test_a_folder_of_diffusers_draws_the_same(
    kind: str, kinds: Callable[[str], Path], drawn: Callable[[str], Image.Image], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    run("export", f"run={kinds(kind)}", "format=diffusers", "model_weights=raw", f"output={folder}")
    assert same(picture(kind, tmp_path, f"from={folder}"), drawn(kind))


@pytest.mark.parametrize("kind", ASKED)
def test_a_published_file_draws_the_same(
    kind: str,
    kinds: Callable[[str], Path],
    drawn: Callable[[str], Image.Image],
    tiny: Callable[[str], str],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "file"
    run("export", f"run={kinds(kind)}", "format=safetensors", "model_weights=raw", f"output={folder}")
    assert same(picture(kind, tmp_path, f"from={folder / 'model.safetensors'}", tiny(kind)), drawn(kind))


def test_a_checkpoint_of_a_run_draws_the_same(
    kinds: Callable[[str], Path], drawn: Callable[[str], Image.Image], tmp_path: Path
) -> None:
    [checkpoint] = (kinds("captions") / "checkpoints").iterdir()
    assert same(picture("captions", tmp_path, f"run={checkpoint}", "model_weights=raw"), drawn("captions"))


def test_one_format_becomes_the_other_bit_for_bit(
    kinds: Callable[[str], Path], tiny: Callable[[str], str], tmp_path: Path
) -> None:
    one, folder, two = (tmp_path / name for name in ("one", "folder", "two"))
    like = tiny("clip")
    run("export", f"run={kinds('clip')}", "format=safetensors", f"output={one}")
    run("export", f"from={one / 'model.safetensors'}", like, "format=diffusers", f"output={folder}")
    run("export", f"from={folder}", "format=safetensors", f"output={two}")
    before, after = (load_file(path / "model.safetensors") for path in (one, two))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_ckpt_has_the_average_and_the_last_step(
    kinds: Callable[[str], Path], drawn: Callable[[str], Image.Image], tiny: Callable[[str], str], tmp_path: Path
) -> None:
    folder, file = tmp_path / "file", tmp_path / "model.ckpt"
    run("export", f"run={kinds('unconditional')}", "format=safetensors", "model_weights=raw", f"output={folder}")
    weights = load_file(folder / "model.safetensors")
    average = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): value / 2
        for name, value in weights.items()
        if name.startswith(compvis.UNET)
    }
    torch.save({"state_dict": {**weights, **average}}, file)
    like = tiny("unconditional")
    assert same(picture("unconditional", tmp_path, f"from={file}", like, "model_weights=raw"), drawn("unconditional"))
    ours = picture("unconditional", tmp_path, f"run={kinds('unconditional')}")
    assert same(picture("unconditional", tmp_path, f"from={file}", like), ours)
    assert not same(ours, drawn("unconditional"))


def test_what_cannot_be_read_is_named(
    kinds: Callable[[str], Path],
    tiny: Callable[[str], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "file"
    run("export", f"run={kinds('unconditional')}", "format=safetensors", f"output={folder}")
    file = f"from={folder / 'model.safetensors'}"
    weights = load_file(folder / "model.safetensors")
    torch.save({**weights, f"{compvis.UNET}surplus.weight": torch.zeros(1)}, tmp_path / "surplus.ckpt")
    torch.save({**weights, "betas": weights["betas"] * 2}, tmp_path / "noisier.ckpt")
    del weights["first_stage_model.quant_conv.bias"]
    torch.save(weights, tmp_path / "lacking.ckpt")
    for arguments, message in (
        ([], "run=None, from=None: give one"),
        ([f"run={kinds('unconditional')}", file], "give one"),
        ([f"from={tmp_path / 'nowhere'}"], "there is no such folder or file"),
        ([f"from={tmp_path}"], "model_index.json: not a readable"),
        ([file], "with like=EXPERIMENT"),
        ([file, "like=nothing"], "there is no such experiment; choose one of celebahq"),
        ([file, "like=first_stage_kl_f4"], "its task is autoencoder"),
        ([f"from={tmp_path / 'surplus.ckpt'}", tiny], "surplus.weight"),
        ([f"from={tmp_path / 'lacking.ckpt'}", tiny], "lacks ['quant_conv.bias']"),
        ([f"from={tmp_path / 'noisier.ckpt'}", tiny], "they belong to different models"),
    ):
        typed = [argument if isinstance(argument, str) else argument("unconditional") for argument in arguments]
        with pytest.raises(SystemExit) as stopped:
            run("sample", *typed, "inputs={}", f"output={tmp_path}")
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err, typed


@pytest.mark.parametrize(
    ("experiment", "released"),
    [
        ("imagenet", "class-conditional-imagenet"),
        ("layout_openimages", "layout2img-openimages"),
        ("semantic", "semantic-synthesis"),
        ("superresolution", "super-resolution-bsr"),
        ("inpainting_big", "inpainting-big"),
        ("celebahq", "celebahq"),
        ("ffhq", "ffhq"),
        ("lsun_bedrooms", "lsun-bedrooms"),
        ("lsun_churches", "lsun-churches"),
    ],
)
def test_a_published_model_fits_its_experiment_name_by_name(experiment: str, released: str) -> None:
    from hydra.utils import instantiate

    entry = Golden().released_unets[released]
    config = published.experiment_config(experiment)
    with torch.device("meta"), WithoutInitialisation():
        model = instantiate(config.model)
        assert {k: list(v.shape) for k, v in compvis.state_dict(model.unet).items()} == entry["unet"]["state_dict"]
        for conditioner in model.conditioners.by_input().values():
            found = {k: list(v.shape) for k, v in compvis.conditioner_state_dict(conditioner).items()}
            if "conditioner" in entry:
                stated = entry["conditioner"]["state_dict"]
                assert found == {k: v for k, v in stated.items() if "to_logits" not in k}
