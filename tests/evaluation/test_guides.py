"""Laws of sampling that a picture leads, by the command `ldm sample`."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation import sample
from models import perceptual
from models.guidance import downsampling

PIXELS = np.zeros((32, 32, 3), np.uint8)
PIXELS[:, 16:] = (255, 200, 40)


def pictures(folder: Path) -> Tensor:
    """float32 [N, 3, 16, 16] in [-1, 1]."""
    arrays = [np.array(Image.open(path)) for path in sorted(folder.glob("*-seed*.png"))]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.fixture
def draw(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """draw(*settings): what `ldm sample` draws with them."""
    Image.fromarray(PIXELS).save(tmp_path / "picture.png")

    def run(*settings: str) -> Tensor:
        output = tmp_path / f"drawn{len(list(tmp_path.iterdir()))}"
        arguments = [f"run={tiny_run}", "prompts=[a, b]", "steps=10", "guidance_scale=1"]
        monkeypatch.setattr(sys, "argv", ["ldm sample", *arguments, f"output={output}", *settings])
        sample.main()
        return pictures(output)

    return run


@pytest.mark.parametrize(("guide", "factor"), [pytest.param("image", 1, marks=pytest.mark.slow), ("downsampling", 4)])
def test_samples_come_nearer_to_the_picture_that_leads_them(guide: str, factor: int, draw, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    image = Image.fromarray(PIXELS).resize((16 // factor, 16 // factor), Image.Resampling.LANCZOS)
    wanted = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    settings = [f"guide={guide}", f"guide.image={tmp_path / 'picture.png'}"]
    settings += [f"guide.factor={factor}"] if factor > 1 else []
    errors = []
    for scale in (0.0, 0.1, 1.0):
        # A pixel of the smaller image is the mean of factor² ones, and leads each of them so much less.
        drawn = draw(*settings, f"guide.scale={scale * factor**2}")
        errors.append((downsampling(factor)(drawn) - wanted).square().mean((1, 2, 3)))
    assert torch.equal(draw(), draw(*settings, "guide.scale=0"))
    assert (errors[1] < errors[0]).all() and (errors[2] < 0.8 * errors[0]).all(), errors


def test_lpips_leads_too(draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """With a trunk of random weights, whose distance a smaller copy of it knows as well."""
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(perceptual, "_trunk_weights", lambda path, expected: expected)
        loss = perceptual.PerceptualLoss("none")
    torch.save({f"features.{name}": w for name, w in loss.trunk.state_dict().items()}, tmp_path / "vgg16.pth")
    wanted = torch.from_numpy(np.array(Image.fromarray(PIXELS).resize((16, 16), Image.Resampling.LANCZOS)))
    wanted = wanted.permute(2, 0, 1)[None] / 127.5 - 1
    settings = ["guide=lpips", f"guide.image={tmp_path / 'picture.png'}", f"guide.weights={tmp_path / 'vgg16.pth'}"]
    plain, led = draw("steps=5"), draw("steps=5", *settings, "guide.scale=1000")
    assert (loss(led, wanted.expand_as(led)) < loss(plain, wanted.expand_as(plain))).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["guide=image"], "guide.image=???: it has no value"),
        (["guide=image", "guide.image=/no/picture.png"], "guide.image=/no/picture.png: "),
        (["guide=downsampling", "guide.image=PICTURE", "guide.factor=3"], "guide.factor=3: it must divide"),
        (["guide=lpips", "guide.image=PICTURE", "guide.weights=/no/vgg16.pth"], "guide.weights=/no/vgg16.pth: "),
        (["guide=classifier", "guide.run=/no/run"], "run=/no/run: there is no config.yaml"),
        (["guide=blend"], "guide=blend: there is no such guide; choose one of classifier, downsampling, image, lpips"),
    ],
)
def test_what_can_not_lead_is_named(
    settings: list[str],
    message: str,
    draw,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        draw(*(setting.replace("PICTURE", str(tmp_path / "picture.png")) for setting in settings))
    assert message in capsys.readouterr().err
