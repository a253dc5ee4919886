"""`ldm zero_shot` from pictures to its result, and what it makes of a kill."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation import zero_shot
from evaluation.answers import Answers
from evaluation.choices import FolderChoices
from evaluation.diffusion_classifier import DiffusionClassifier
from evaluation.errors import EvaluationError
from evaluation.pictures import write_png
from evaluation.zero_shot import summary

CLASSES = ("a_red_thing", "b_green_thing", "c_blue_thing")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of two pictures each, and one more."""
    folder = tmp_path_factory.mktemp("classes")
    generator = torch.Generator().manual_seed(0)
    for i, name in enumerate(CLASSES):
        for number in range(3 if i == 2 else 2):
            image = torch.randint(0, 256, (3, 20, 24), generator=generator, dtype=torch.uint8)
            write_png(folder / name / "further" / f"{number}.png", image)
    return folder


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ldm zero_shot", *arguments])
    zero_shot.main()


SMALL = ("stages=[{pairs:2,keep:2},{pairs:3,keep:1}]", "batch_size=8")


def test_command_answers_for_every_picture_and_goes_on_after_a_kill(
    writable_run: Path, classes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []
    choose = DiffusionClassifier.choose

    def noted(self: DiffusionClassifier, image: Tensor, number: int, candidates: Sequence[int]) -> int:
        asked.append(number)
        assert image.shape == (3, 16, 16)
        return choose(self, image, number, candidates)

    monkeypatch.setattr(DiffusionClassifier, "choose", noted)
    arguments = (f"run={writable_run}", f"data.folder={classes}", *SMALL)
    command(monkeypatch, *arguments)
    assert asked == list(range(7))
    (path,) = (writable_run / "zero_shot").glob("*/result.json")
    whole = json.loads(path.read_text())
    assert "accuracy:" in capsys.readouterr().out
    assert whole["chance"] == pytest.approx(1 / 3)
    assert whole["classes"].keys() == {"a red thing", "b green thing", "c blue thing"}
    assert whole["low"] <= whole["accuracy"] <= whole["high"]
    assert whole["card"]["templates"] == ["a photo of a {}."]
    # Killed within the fifth answer.
    (answers,) = path.parent.glob("answers-*")
    lines = answers.read_text().splitlines()
    answers.write_text("\n".join(lines[:5]) + "\n" + lines[5][:3])
    path.unlink()
    asked.clear()
    command(monkeypatch, *arguments)
    assert asked == [4, 5, 6]
    assert json.loads(path.read_text()) == whole
    # Other settings are other questions.
    asked.clear()
    command(monkeypatch, *arguments, 'templates="a {}"')
    assert asked == list(range(7))


def test_held_out_pictures_are_told_by_their_captions(
    writable_run: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (f"run={writable_run}", f"data.shards={colours}", "data.pictures=8", "data.choices=4", *SMALL)
    command(monkeypatch, *arguments)
    (path,) = (writable_run / "zero_shot").glob("*/result.json")
    result = json.loads(path.read_text())
    assert (result["pictures"], result["chance"]) == (8, 0.25)
    assert result["card"]["templates"] == ["{}"]
    assert "classes" not in result


def test_answers_are_read_from_all_ranks(tmp_path: Path) -> None:
    first, second = Answers(tmp_path, 0), Answers(tmp_path, 1)
    first.add(0, 3)
    second.add(1, 2)
    with (tmp_path / "answers-rank-1.jsonl").open("a") as file:
        file.write("\n[2, ")
    Answers(tmp_path, 1).add(2, 7)
    assert first.read() == {0: 3, 1: 2, 2: 7}


def test_folders_are_classes(classes: Path) -> None:
    choices = FolderChoices(classes, None, 8, None, 0)
    assert choices.texts == ["a red thing", "b green thing", "c blue thing"]
    assert len(choices) == 7
    assert choices.image(0).shape == (3, 8, 8)
    assert sorted(choices.candidates(n)[1] for n in range(7)) == [0, 0, 1, 1, 2, 2, 2]
    some = FolderChoices(classes, {name: name[0] for name in CLASSES}, None, 3, 0)
    assert (len(some), some.texts, some.image(0).shape) == (3, ["a", "b", "c"], (3, 20, 24))
    assert [some.candidates(n)[1] for n in range(3)] == [choices.candidates(n)[1] for n in range(3)]
    for folder, names, count, message in (
        (classes / "absent", None, None, "there is no such folder"),
        (classes / CLASSES[0], None, None, "it holds 1 folders"),
        (classes, {"a_red_thing": "a"}, None, "nothing for the classes b_green_thing"),
        (classes, None, 8, "give 1 to 7"),
    ):
        with pytest.raises(EvaluationError, match=message):
            FolderChoices(folder, names, 8, count, 0)


def test_summary_is_of_all_pictures(classes: Path) -> None:
    choices = FolderChoices(classes, None, 8, None, 0)
    right = {number: choices.candidates(number)[1] for number in range(7)}
    all_right = summary(choices, right)
    assert (all_right["accuracy"], all_right["mean_per_class"], all_right["high"]) == (1, 1, 1)
    always_blue = summary(choices, {number: 2 for number in range(7)})
    assert always_blue["accuracy"] == 3 / 7
    assert always_blue["mean_per_class"] == pytest.approx(1 / 3)
    del right[5]
    with pytest.raises(EvaluationError, match="1 of 7 pictures have no answer, such as number 5"):
        summary(choices, right)


def test_clip_chooses_as_open_clip_does(classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights; two templates, whose embeddings are averaged."""
    name, templates = "ViT-S-32-alt", ["a {}", "the {} here"]
    torch.manual_seed(0)
    reference, _, view = open_clip.create_model_and_transforms(name, load_weights=False)
    torch.save(reference.eval().state_dict(), tmp_path / "clip.pth")
    choices = FolderChoices(classes, None, None, None, 0)
    prompts = [[template.format(text) for template in templates] for text in choices.texts]
    with torch.no_grad():
        words = torch.stack(
            [
                reference.encode_text(open_clip.get_tokenizer(name)(of_class), normalize=True).mean(0)
                for of_class in prompts
            ]
        )
        words = words / words.norm(dim=1, keepdim=True)
        views = torch.stack([view(Image.fromarray(choices.image(n).permute(1, 2, 0).numpy())) for n in range(7)])
        wanted = (reference.encode_image(views, normalize=True) @ words.T).argmax(1).tolist()
    command(
        monkeypatch, f"clip={name}", f"clip_weights={tmp_path / 'clip.pth'}", f"data.folder={classes}",
        'templates=["a {}","the {} here"]', f"output={tmp_path / 'out'}",
    )  # fmt: skip
    (path,) = (tmp_path / "out").glob("*/result.json")
    assert Answers(path.parent, 0).read() == dict(enumerate(wanted))
    hits = [chosen == choices.candidates(n)[1] for n, chosen in enumerate(wanted)]
    assert json.loads(path.read_text())["accuracy"] == sum(hits) / 7


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["clip=ViT-B-32"], "give one: run=FOLDER, or clip=MODEL"),
        (["data.folder=absent"], "data.folder=absent: there is no such folder"),
        ([], "data.folder=null"),
        (["data.folder={classes}", "templates=[a photo]"], "each with one {} where the class is named"),
        (["data.folder={classes}", "stages=[{pairs:3,keep:2}]"], "it must keep 1"),
        (["data.folder={classes}", "loss=l3"], "loss=l3"),
        (["data.folder={classes}", "data.names=absent.json"], "data.names=absent.json"),
    ],
)
def test_command_names_what_cannot_work(
    writable_run: Path,
    classes: Path,
    overrides: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, f"run={writable_run}", *(text.replace("{classes}", str(classes)) for text in overrides))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
