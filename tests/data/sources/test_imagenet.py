from pathlib import Path

import pytest
from composed import inputs_of, picture, source

from data.errors import DataError
from data.sources import HELD_OUT, TRAIN, LeftOut

SYNSETS = ("n01440764", "n01443537", "n15075141")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, synset in enumerate(SYNSETS):
        path = tmp_path / f"train/{synset}/{synset}_{number}.JPEG"
        path.parent.mkdir(parents=True)
        path.write_bytes(picture(number))
    return tmp_path


def test_the_class_is_the_place_of_the_synset(folder: Path) -> None:
    (folder / f"val/{SYNSETS[1]}").mkdir(parents=True)
    (folder / f"val/{SYNSETS[1]}/ILSVRC2012_val_00000001.JPEG").write_bytes(picture(7))
    found = source("imagenet", folder=folder, classes=3)
    assert [(sample.metadata["label"], sample.split) for sample in found] == [
        (0, TRAIN),
        (1, TRAIN),
        (2, TRAIN),
        (1, HELD_OUT),
    ]
    assert int(inputs_of("imagenet", found[2])["label"]) == 2
    assert inputs_of("superresolution", found[2])["low_resolution"].shape == (3, 64, 64)


def test_flat_validation_pictures_with_their_list(folder: Path) -> None:
    (folder / "val").mkdir()
    for number in (1, 2):
        (folder / f"val/ILSVRC2012_val_0000000{number}.JPEG").write_bytes(picture(number))
    solution = folder / "LOC_val_solution.csv"
    solution.write_text(f"ImageId,PredictionString\nILSVRC2012_val_00000001,{SYNSETS[2]} 1 2 3 4 {SYNSETS[2]} 5 6 7\n")
    found = source("imagenet", folder=folder, classes=3, flat_labels=solution)
    assert (found[3].metadata["label"], found[3].split) == (2, HELD_OUT)
    with pytest.raises(LeftOut, match="no_label"):
        found[4]
    solution.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"isn't like LOC_val_solution\.csv"):
        source("imagenet", folder=folder, classes=3, flat_labels=solution)


def test_missing_classes_are_told(folder: Path) -> None:
    with pytest.raises(DataError, match="3 synsets, 1000 are expected"):
        source("imagenet", folder=folder)
