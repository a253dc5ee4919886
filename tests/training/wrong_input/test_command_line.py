"""What the command line itself can't be read as, and that a right one starts ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT, finish, ldm
from tests.training.wrong_input.refusals import Refused, Wrong, check, the_message
from tests.training.wrong_input.test_data import DATA
from training import cli, launch

COMMANDS = {
    "unknown experiment": Wrong(("experiment=demoo",), "experiment=demoo", "did you mean demo"),
    "misspelt key": Wrong(("model.unet.chanels=64",), "model.unet.chanels=64", "did you mean model.unet.channels"),
    "misspelt group": Wrong(("modle.unet.channels=64",), "modle.unet.channels=64", "did you mean model.unet.channels"),
    "key that no part takes": Wrong(("+model.unet.depth=2",), "model.unet=models.unet.UNet: ", "argument 'depth'"),
    "unknown class": Wrong(("model.unet._target_=models.unet.Net",), "model.unet=models.unet.Net: ", "--cfg job"),
    "no key": Wrong(("steps",), "steps: ", "key=value"),
    "braces without quotes": Wrong(("data.train=/x/{0..9}.tar",), "data.train=/x/{0..9}.tar", "needs quotes"),
    "words for a number": Wrong(("steps=abc",), "steps=abc", "a whole number, such as "),
    "a fraction for a count": Wrong(("steps=1.5",), "steps=1.5", "a whole number"),
    "nothing for a count": Wrong(("steps=null",), "steps=null", "a whole number of at least 1"),
    "no step": Wrong(("steps=0",), "steps=0", "at least 1"),
    "words for a rate": Wrong(("learning_rate.base=fast",), "learning_rate.base=fast", "a number, such as "),
    "words for a switch": Wrong(("data.flip=maybe",), "data.flip=maybe", "true or false"),
    "a number for a list": Wrong(
        ("model.unet.channel_multipliers=2",), "model.unet.channel_multipliers=2", "a list, such as ["
    ),
    "reference to nothing": Wrong(("data.url=${data.home}/x",), "data.url=${data.home}/x", "--cfg job"),
}


@pytest.mark.parametrize("wrong", COMMANDS.values(), ids=COMMANDS.keys())
def test_wrong_setting(wrong: Wrong, base: list[str], refused: Refused) -> None:
    check(refused([*base, *wrong.overrides]), wrong.says, wrong.remedy)


def test_missing_values(refused: Refused, first_stage_weights: Path) -> None:
    choices = sorted(path.stem for path in (PROJECT / "conf" / "experiment").glob("*.yaml"))
    check(refused(["steps=3"]), "experiment=???", f"choose one of {', '.join(choices)}")
    message = refused(["experiment=txt2img_1p45b", f"first_stage.weights={first_stage_weights}"])
    check(message, "data.url=???", "give it on the command line")


def test_right_input_starts_ranks(base: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def start_ranks(module: str, overrides: list[str], ranks: int, environment: dict[str, str]) -> launch.Ending:
        started.append(ranks)
        return launch.Ending(7)

    monkeypatch.setattr(launch, "start_ranks", start_ranks)
    monkeypatch.setattr(sys, "argv", ["ldm", "train", *base])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert started == [2]
    assert ended.value.code == 7


def test_run_folder_in_use(base: list[str], refused: Refused, tmp_path: Path) -> None:
    with launch.hold_run_folder(tmp_path / "run"):
        check(refused(base), f"run.folder={tmp_path / 'run'}", "stop it, or choose another run.name")
    (tmp_path / "file").write_text("")
    check(refused([*base, f"run.folder={tmp_path}/file/run"]), f"run.folder={tmp_path}/file/run", "another folder")


@pytest.mark.parametrize("wrong", [COMMANDS["misspelt key"], DATA["no such folder"]], ids=["command", "data"])
def test_the_real_command_says_the_same(wrong: Wrong, base: list[str]) -> None:
    status, out, err = finish(ldm("train", *base, *wrong.overrides))
    assert status == 2
    check(the_message(out, err), wrong.says, wrong.remedy)
