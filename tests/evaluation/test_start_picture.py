"""Laws of sampling that begins from a picture, and the settings of `ldm sample` for it."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation import sample
from evaluation.errors import EvaluationError
from evaluation.generate import generate
from evaluation.run import LoadedRun, load_run
from evaluation.start_picture import StartPicture, read_start_picture
from models.samplers import Sampler
from models.samplers.ddim import ddim
from models.samplers.ddpm import ddpm
from models.samplers.dpm_solver import dpm_solver
from models.samplers.plms import plms

IMAGE = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LEFT = torch.zeros(16, 16, dtype=torch.bool)
LEFT[:, :6] = True


@pytest.fixture(scope="module")
def loaded(tiny_run: Path) -> LoadedRun:
    return load_run(tiny_run, "cpu", "raw")


def draw(loaded: LoadedRun, start: StartPicture | None, sampler: Sampler = ddim) -> Tensor:
    """Two pictures with ten steps."""
    caption = loaded.inputs["caption"]
    inputs = {"caption": torch.stack([caption.parse("a"), caption.parse("b")])}
    shape = loaded.image_model.first_stage.latent_shape(16, 16)
    return generate(loaded.image_model, sampler, inputs, [1, 2], shape, 10, 2.0, 1, start_picture=start)


def reconstruction(loaded: LoadedRun) -> Tensor:
    latent = StartPicture(IMAGE, 1.0, None).encode(loaded.image_model.first_stage, 10).latent
    return loaded.image_model.first_stage.decode(latent)[0]


def test_full_strength_is_sampling_from_noise(loaded: LoadedRun) -> None:
    assert torch.equal(draw(loaded, StartPicture(IMAGE, 1.0, None)), draw(loaded, None))


@pytest.mark.parametrize(("strength", "taken"), [(1.0, 10), (0.6, 6), (0.25, 2), (0.01, 1)])
def test_strength_is_the_share_of_the_steps(loaded: LoadedRun, strength: float, taken: int) -> None:
    assert StartPicture(IMAGE, strength, None).encode(loaded.image_model.first_stage, 10).skip == 10 - taken


def test_less_strength_stays_nearer_to_the_picture(loaded: LoadedRun) -> None:
    original = reconstruction(loaded)
    distances = [
        (draw(loaded, StartPicture(IMAGE, s, None)) / 127.5 - 1 - original).square().mean() for s in (0.1, 0.4, 1.0)
    ]
    assert distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("sampler", [ddim, ddpm, plms, dpm_solver])
def test_what_a_mask_keeps_is_kept_by_every_sampler(loaded: LoadedRun, sampler: Sampler) -> None:
    latents = []

    def watched(z: Tensor, tile: int | None) -> Tensor:
        latents.append(z)
        return type(loaded.image_model.first_stage).decode(loaded.image_model.first_stage, z)

    picture = StartPicture(IMAGE, 1.0, LEFT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaded.image_model.first_stage, "decode", watched)
        draw(loaded, picture, sampler)
    known = picture.encode(loaded.image_model.first_stage, 10)
    assert known.keep is not None
    assert known.keep[0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]  # f = 2: six pixels are three latents
    for z in latents:
        assert torch.equal(z[..., 3:], known.latent[..., 3:])
        assert not torch.allclose(z[..., :3], known.latent[..., :3])
    assert not torch.allclose(latents[0], latents[1])


def test_what_can_not_work_is_named(tmp_path: Path) -> None:
    for strength in (0.0, 1.5, -1.0):
        with pytest.raises(ValueError, match=f"strength={strength}: choose above 0"):
            StartPicture(IMAGE, strength, None)
    with pytest.raises(ValueError, match=r"mask has \[8, 8\] pixels and the picture \[16, 16\]"):
        StartPicture(IMAGE, 0.5, LEFT[:8, :8])
    with pytest.raises(EvaluationError, match=r"image=.*none\.png"):
        read_start_picture(tmp_path / "none.png", None, 0.5, 16)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(EvaluationError, match=r"image=.*text\.png.*give a PNG"):
        read_start_picture(tmp_path / "text.png", None, 0.5, 16)


def test_command_begins_from_files(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(IMAGE.permute(1, 2, 0).numpy()).resize((40, 30)).save(tmp_path / "image.png")
    Image.fromarray(LEFT.numpy()).save(tmp_path / "mask.png")
    common = ["ldm sample", f"run={tiny_run}", "prompts=[a]", "steps=4"]
    pictures = {}
    for name, settings in {
        "noise": [],
        "image": [f"image={tmp_path}/image.png", "strength=0.5"],
        "mask": [f"image={tmp_path}/image.png", f"mask={tmp_path}/mask.png"],
    }.items():
        monkeypatch.setattr(sys, "argv", [*common, f"output={tmp_path / name}", *settings])
        sample.main()
        with Image.open(tmp_path / name / "a-seed0.png") as image:
            pictures[name] = image.tobytes()
            assert ("strength" in image.text["Parameters"]) == (name != "noise")  # type: ignore[attr-defined]
    assert len(set(pictures.values())) == 3


def test_command_names_a_mask_without_a_picture(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ldm sample", f"run={tiny_run}", "prompts=[a]", "mask=m.png"])
    with pytest.raises(SystemExit):
        sample.main()
    assert "error: mask=m.png: name the picture" in capsys.readouterr().err
