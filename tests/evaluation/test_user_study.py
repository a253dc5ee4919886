"""The page asks as App. E.3.6 of the paper does, and what it saves is counted."""

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from evaluation import user_study
from evaluation.errors import EvaluationError
from evaluation.pictures import write_png
from evaluation.proportion import wilson_interval
from evaluation.user_study import QUESTIONS, build_study
from evaluation.user_study_results import preferences, read_answers
from tests.evaluation import browser
from training.compose import composed

SOURCES = ("low", "high", "ours", "theirs")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three pictures of four kinds, each of one colour."""
    root = tmp_path_factory.mktemp("study")
    for i, source in enumerate(SOURCES):
        for number in range(3):
            colour = torch.tensor([60 * i, 80 * number, 128], dtype=torch.uint8)
            write_png(root / source / f"{number}.png", colour[:, None, None].expand(3, 24, 24).contiguous())
    return {source: root / source for source in SOURCES}


def settings(folders: dict[str, Path], **changes: object) -> DictConfig:
    config = composed("user_study", [f"condition={folders['low']}", f"real={folders['high']}", "pictures=2"])
    config.methods = {"ldm": str(folders["ours"]), "pixels": str(folders["theirs"])}
    for key, value in changes.items():
        OmegaConf.update(config, key, value)
    return config


def test_both_tasks_ask_of_every_picture(folders: dict[str, Path]) -> None:
    study = build_study(settings(folders))
    asked = [(trial.task, trial.sources) for trial in study.trials]
    assert {pair: asked.count(pair) for pair in asked} == {
        (1, ("real", "ldm")): 2, (1, ("real", "pixels")): 2, (2, ("ldm", "pixels")): 2,
    }  # fmt: skip
    assert len({trial.picture for trial in study.trials}) == 2
    assert study.question == QUESTIONS["superresolution"]
    assert study.seconds == 3
    alone = build_study(settings(folders, real=None))
    assert {trial.task for trial in alone.trials} == {2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condition": "absent"}, "condition: there is no folder absent"),
        ({"pictures": 4}, "give 1 to 3"),
        ({"seconds": 0}, "the paper's are 3"),
        ({"question": "colourisation"}, "choose superresolution or inpainting"),
        ({"methods": {"real": "x"}}, "none of them real"),
        ({"real": None, "methods": {"a": "x"}}, "give real=FOLDER"),
    ],
)
def test_unusable_settings_are_named(folders: dict[str, Path], changes: dict[str, object], message: str) -> None:
    config = settings(folders)
    for key, value in changes.items():
        config[key] = value
    with pytest.raises(EvaluationError) as caught:
        build_study(config)
    assert message in str(caught.value)


def test_a_picture_that_a_method_lacks_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    for number in (0, 2):
        (tmp_path / f"{number}.png").symlink_to(folders["ours"] / f"{number}.png")
    config = settings(folders)
    config.methods.ldm = str(tmp_path)
    with pytest.raises(EvaluationError, match=r"no picture 1, which is in .*1 of 3 are missing"):
        build_study(config)


def answers(participant: str, chosen: list[str], study: str = "s") -> dict[str, Any]:
    """Task 1, the sides in turn."""
    sides = [("real", "ldm"), ("ldm", "real")]
    made = [{"task": 1, "left": sides[i % 2][0], "right": sides[i % 2][1], "chosen": c} for i, c in enumerate(chosen)]
    return {"study": study, "participant": participant, "answers": made}


def test_preferences_are_counted_whatever_the_sides() -> None:
    a = answers("a", ["ldm", "real", "real", "real"])
    b = answers("b", ["real", "ldm", "real", "ldm"])
    (row,) = preferences([a, b])
    assert (row.task, row.preferred, row.other, row.answers, row.participants) == (1, "ldm", "real", 8, 2)
    assert row.share == 3 / 8
    assert (row.low, row.high) == wilson_interval(3, 8)
    with pytest.raises(EvaluationError, match="answers of 2 studies"):
        preferences([a, answers("c", ["ldm"], "other")])
    with pytest.raises(EvaluationError, match="'a' is there more than once"):
        preferences([a, a])


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps(answers("a", ["someone"])), json.dumps(answers("a", []))])
def test_what_is_no_file_of_answers_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(EvaluationError, match="holds no participant's answers"):
        read_answers(path)


def study_page(folders: dict[str, Path], path: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    monkeypatch.setattr(
        sys, "argv",
        [
            "ldm user_study", f"condition={folders['low']}", f"real={folders['high']}",
            f"methods.ldm={folders['ours']}", f"methods.pixels={folders['theirs']}", f"output={path}", *overrides,
        ],
    )  # fmt: skip
    user_study.main()


@pytest.mark.skipif(browser.found() is None, reason=f"no browser: none of {', '.join(browser.NAMES)} is installed")
def test_a_participant_sees_three_pictures_then_answers_and_saves(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a browser, with 0.3 seconds instead of the paper's three."""
    page_file = tmp_path / "study.html"
    study_page(folders, page_file, monkeypatch, "pictures=2", "seconds=0.3")
    conditions = [path.read_bytes() for path in folders["low"].iterdir()]
    saved = asyncio.run(_participate(page_file, conditions, tmp_path / "profile"))
    path = tmp_path / "anna.json"
    path.write_text(saved)
    found = read_answers(path)
    assert found["participant"] == "Anna"
    assert len(found["answers"]) == 6
    assert {(a["task"], *sorted((a["left"], a["right"]))) for a in found["answers"]} == {
        (1, "ldm", "real"), (1, "pixels", "real"), (2, "ldm", "pixels"),
    }  # fmt: skip
    assert all(a["chosen"] == a["left"] for a in found["answers"][:3])
    assert all(a["chosen"] == a["right"] for a in found["answers"][3:])
    assert all(a["shown_seconds"] >= 0.299 for a in found["answers"])
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["ldm user_study", "results", str(path)])
    user_study.main()
    assert capsys.readouterr().out.count(" answers of 1)") == 3


async def _participate(page_file: Path, conditions: list[bytes], profile: Path) -> str:
    """Goes through the whole study: left by clicks three times, then right by the arrow key. Returns what is saved."""
    hidden = "document.getElementById('pictures').classList.contains('away')"
    disabled = "document.getElementById('choose-left').disabled"
    async with browser.opened(page_file, profile) as page:
        await page.value("document.querySelector('#begin button').click()")
        assert not await page.value("document.getElementById('welcome').hidden")  # nobody takes part without a name
        await page.value("document.getElementById('participant').value = 'Anna'")
        await page.value("document.querySelector('#begin button').click()")
        for number in range(6):
            await page.until(f"!{hidden}")
            assert await page.value(disabled)
            # An answer before the end of the time is none.
            await page.value("document.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowLeft' }))")
            source = (await page.value("document.getElementById('middle').src")).partition(",")[2]
            assert base64.b64decode(source) in conditions
            await page.until(f"{hidden} && !{disabled}")
            if number < 3:
                await page.value("document.getElementById('choose-left').click()")
            else:
                await page.value("document.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight' }))")
        await page.until("!document.getElementById('end').hidden")
        text = await page.value("document.getElementById('answers').value")
        linked = await page.value("fetch(document.getElementById('save').href).then(answer => answer.text())")
        assert linked == text
        return str(text)
