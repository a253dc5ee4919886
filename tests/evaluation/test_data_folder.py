"""`ldm evaluate data=FOLDER`: shards, or COCO as it is published, are told by what lies there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig

from evaluation import evaluate
from evaluation.data_folder import with_data_of_folder
from evaluation.errors import EvaluationError
from slurm.command import parse
from training import compose


def told(*arguments: str) -> tuple[str | None, str | None, str | None]:
    data = with_data_of_folder(compose.composed("evaluate", ["run=.", *arguments])).data
    return data.shards, data.captions, data.images


def coco(folder: Path, captions: str, pictures: str) -> None:
    for file in (folder / captions, folder / pictures / "000000000001.jpg"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_shards_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").touch()
    (tmp_path / "captions_of_mine.json").touch()
    assert told(f"data.folder={tmp_path}") == (str(tmp_path), None, None)
    assert told("data.folder=/no/such") == ("/no/such", None, None)  # whose reader says that it isn't there
    assert told() == (None, None, None)


@pytest.mark.parametrize(
    ("captions", "pictures"),
    [
        ("captions_val2014.json", "val2014"),
        ("annotations/captions_val2017.json", "val2017"),
        ("captions_x.json", "images"),
    ],
)
def test_coco_is_found_as_it_is_published(captions: str, pictures: str, tmp_path: Path) -> None:
    coco(tmp_path, captions, pictures)
    found = (f"{tmp_path}/{captions}", f"{tmp_path}/{pictures}")
    assert told(f"data.folder={tmp_path}") == (f"{tmp_path}/shards", *found)
    assert told(f"data.folder={tmp_path}", "data.shards=/scratch/x") == ("/scratch/x", *found)
    assert told(f"data.folder=file://{tmp_path}")[2] == f"file://{tmp_path}/{pictures}"


def test_what_cannot_be_told_is_refused(tmp_path: Path) -> None:
    coco(tmp_path, "annotations/captions_val2014.json", "pictures")
    for arguments, remedy in (
        ([f"data.folder={tmp_path}"], "no pictures in"),
        ([f"data.folder={tmp_path}", "data.captions=x.json"], "give either that, or"),
        ([f"data.folder={tmp_path}/pictures", "data.shards=/x"], "leave one out"),
    ):
        with pytest.raises(EvaluationError, match=remedy):
            told(*arguments)
    coco(tmp_path, "annotations/captions_train2014.json", "val2014")
    with pytest.raises(EvaluationError, match="name one of them in"):
        told(f"data.folder={tmp_path}")


def test_it_is_typed_as_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[DictConfig] = []
    monkeypatch.setattr(compose.hydra, "main", lambda *_, **__: lambda run: found.append)
    for value in (str(tmp_path), "s3://bucket/coco"):
        monkeypatch.setattr(sys, "argv", ["ldm evaluate", "run=.", f"data={value}", "data.workers=2"])
        evaluate.main()
        assert (found[-1].data.folder, found[-1].data.workers) == (value, 2)
    assert parse(["evaluate", "run=.", "data=/x"]).overrides == ["run=.", "data.folder=/x"]
