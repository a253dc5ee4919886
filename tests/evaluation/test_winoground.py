"""Winoground's scores as the paper defines them, and over a folder such as the published one."""

import json
from pathlib import Path

import pytest
import torch

from evaluation.diffusion_classifier import DiffusionClassifier, Stage
from evaluation.errors import EvaluationError
from evaluation.pictures import write_png
from evaluation.run import load_run
from evaluation.winoground import Winoground, winoground_scores, winoground_summary
from tests.evaluation.test_zero_shot import SMALL, command


def example(c0_i0: float, c0_i1: float, c1_i0: float, c1_i1: float) -> torch.Tensor:
    return torch.tensor([[c0_i0, c0_i1], [c1_i0, c1_i1]])


def test_scores_of_known_examples() -> None:
    right = example(3, 1, 1, 3)
    text_alone = example(2, 5, 1, 6)  # image 1 scores higher with both captions
    image_alone = example(2, 1, 5, 6)  # caption 1 scores higher with both images
    even = example(1, 1, 1, 1)
    found = winoground_scores(torch.stack([right, text_alone, image_alone, even]))
    assert found == {"text": 0.5, "image": 0.5, "group": 0.25}


def test_scores_by_chance() -> None:
    found = winoground_scores(torch.rand(200_000, 2, 2, generator=torch.Generator().manual_seed(0)))
    assert found["text"] == pytest.approx(1 / 4, abs=0.005)
    assert found["image"] == pytest.approx(1 / 4, abs=0.005)
    assert found["group"] == pytest.approx(1 / 6, abs=0.005)


def test_images_change_places_with_captions() -> None:
    scores = torch.rand(500, 2, 2, generator=torch.Generator().manual_seed(1))
    there, back = winoground_scores(scores), winoground_scores(scores.mT)
    assert (there["text"], there["image"], there["group"]) == (back["image"], back["text"], back["group"])


def test_what_is_no_score_is_named() -> None:
    for wrong in (torch.zeros(0, 2, 2), torch.zeros(3, 2), torch.full((1, 2, 2), float("nan"))):
        with pytest.raises(ValueError, match="scores h"):
            winoground_scores(wrong)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three examples."""
    generator = torch.Generator().manual_seed(0)
    lines = []
    for e in range(3):
        for i in range(2):
            image = torch.randint(0, 256, (3, 20, 24), generator=generator, dtype=torch.uint8)
            write_png(tmp_path / "winoground" / "images" / f"ex_{e}_img_{i}.png", image)
        names = {f"image_{i}": f"ex_{e}_img_{i}" for i in range(2)}
        captions = {f"caption_{c}": f"{'red' if c else 'green'} thing number {e}" for c in range(2)}
        lines.append(json.dumps({"id": e, **names, **captions, "tag": "any"}))
    (tmp_path / "winoground" / "examples.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "winoground"


def test_a_picture_s_candidates_are_its_example_s_captions(folder: Path) -> None:
    found = Winoground(folder, 16, None)
    assert (len(found), found.image(5).shape) == (6, (3, 16, 16))
    assert [found.texts[i] for i in found.candidates(5)[0]] == ["green thing number 2", "red thing number 2"]
    assert [found.candidates(number)[1] for number in range(6)] == [0, 1, 0, 1, 0, 1]
    assert len(Winoground(folder, 16, 2)) == 4
    (folder / "images" / "ex_1_img_0.png").unlink()
    for change, message in ((folder, "1 pictures are missing"), (folder / "images", "examples.jsonl")):
        with pytest.raises(EvaluationError, match=message):
            Winoground(change, 16, None)


def test_answers_are_by_picture_and_scores_by_caption() -> None:
    # The only example: caption 0 fits image 0 better than image 1, and image 1 fits caption 0 better, too.
    found = winoground_summary({0: [5.0, 1.0], 1: [3.0, 2.0]}, 2)
    assert {name: found[name]["score"] for name in ("text", "image", "group")} == {"text": 0, "image": 1, "group": 0}
    with pytest.raises(EvaluationError, match="1 of 2 pictures have no answer, such as number 1"):
        winoground_summary({0: [5.0, 1.0]}, 2)


def test_the_command_scores_by_the_errors_less_those_without_words(
    writable_run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, f"run={writable_run}", f"data.winoground={folder}", *SMALL)
    told = capsys.readouterr().out
    assert "group: " in told and "chance: 16.7 %" in told
    (path,) = (writable_run / "zero_shot").glob("*/result.json")
    loaded, pictures = load_run(writable_run, "cpu"), Winoground(folder, 16, None)
    words = torch.stack([loaded.inputs["caption"].parse(text) for text in [*pictures.texts, ""]])[:, None]
    classifier = DiffusionClassifier(loaded.image_model, words, [Stage(3, 1)], 0, "l2", 8)
    scores = torch.empty(3, 2, 2)  # [examples, captions, images]
    for number in range(6):
        without = classifier.errors(pictures.image(number), number, [6])
        scores[number // 2, :, number % 2] = without - classifier.errors(
            pictures.image(number), number, pictures.candidates(number)[0]
        )
    result = json.loads(path.read_text())
    assert {name: result[name]["score"] for name in ("text", "image", "group")} == winoground_scores(scores)
    assert result["examples"] == 3
    assert scores.abs().min() > 0, "words matter to the model, else equality shows nothing"
