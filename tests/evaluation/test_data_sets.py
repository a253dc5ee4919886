"""Each data set is read from the files that it is published as."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from evaluation.choices import FolderChoices
from evaluation.data_sets import DataSet, read_data_set
from evaluation.errors import EvaluationError


def picture(path: Path, grey: int = 90, size: int = 20) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size + 4, 3), grey, np.uint8)).save(path)
    return path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def shown(found: DataSet) -> list[tuple[str, str]]:
    """Name and words of each picture's class."""
    assert isinstance(found.pictures, list)
    return [(path.name, found.words[label]) for path, label in zip(found.pictures, found.labels, strict=True)]


def test_food_101(tmp_path: Path) -> None:
    for name in ("apple_pie/1", "apple_pie/2", "ramen/3"):
        picture(tmp_path / "images" / f"{name}.jpg")
    write(tmp_path / "meta" / "test.txt", "apple_pie/2\nramen/3\n")
    found = read_data_set(tmp_path)
    assert shown(found) == [("2.jpg", "apple pie"), ("3.jpg", "ramen")]
    assert found.template == "a photo of {}, a type of food."


def test_fgvc_aircraft(tmp_path: Path) -> None:
    for number in (1514522, 747566):
        picture(tmp_path / "data" / "images" / f"{number}.jpg")
    write(tmp_path / "data" / "images_variant_test.txt", "1514522 707-320\n747566 DHC-6\n")
    assert shown(read_data_set(tmp_path)) == [("1514522.jpg", "707-320"), ("747566.jpg", "DHC-6")]


def test_oxford_pets(tmp_path: Path) -> None:
    for name in ("american_bulldog_10", "Bengal_7"):
        picture(tmp_path / "images" / f"{name}.jpg")
    write(tmp_path / "annotations" / "test.txt", "Bengal_7 6 1 2\namerican_bulldog_10 2 2 1\n")
    assert shown(read_data_set(tmp_path)) == [
        ("Bengal_7.jpg", "Bengal"),
        ("american_bulldog_10.jpg", "american bulldog"),
    ]


def test_flowers_102(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        picture(tmp_path / "jpg" / f"image_{number:05d}.jpg")
    savemat(tmp_path / "imagelabels.mat", {"labels": np.array([[77, 1, 102]])})
    savemat(tmp_path / "setid.mat", {"tstid": np.array([[3, 1]]), "trnid": np.array([[2]])})
    found = read_data_set(tmp_path)
    assert shown(found) == [("image_00003.jpg", "blackberry lily"), ("image_00001.jpg", "passion flower")]
    assert len(found.words) == 102


def test_stl_10_and_cifar_10(tmp_path: Path) -> None:
    stl, cifar = tmp_path / "stl", tmp_path / "cifar"
    names = "airplane\nbird\n"
    image = np.zeros((2, 3, 96, 96), np.uint8)  # columns before rows
    image[1, 0, 5, 80] = 255
    for folder in (stl, cifar):
        folder.mkdir()
    image.tofile(stl / "test_X.bin")
    np.array([1, 2], np.uint8).tofile(stl / "test_y.bin")
    write(stl / "class_names.txt", names)
    record = np.zeros((2, 1 + 3072), np.uint8)
    record[0, 0], record[0, 1 + 2 * 1024 + 32 * 7 + 9] = 1, 200  # blue, row 7, column 9
    record.tofile(cifar / "test_batch.bin")
    write(cifar / "batches.meta.txt", names + "\n")
    found = read_data_set(stl)
    assert (found.labels, found.words) == ([0, 1], ["airplane", "bird"])
    assert found.pictures[1][80, 5].tolist() == [255, 0, 0]  # type: ignore[index]
    found = read_data_set(cifar)
    assert (found.labels, found.template) == ([1, 0], "a blurry photo of a {}.")
    assert found.pictures[0][7, 9].tolist() == [0, 0, 200]  # type: ignore[index]
    choices = FolderChoices(cifar, None, 16, None, 0)
    assert (len(choices), choices.image(0).shape) == (2, (3, 16, 16))
    known = choices.fingerprint
    record[0, 50] = 1
    record.tofile(cifar / "test_batch.bin")
    assert FolderChoices(cifar, None, 16, None, 0).fingerprint != known
    np.array([1, 3], np.uint8).tofile(stl / "test_y.bin")
    with pytest.raises(EvaluationError, match="looks like STL-10, but ValueError: 2 pictures, 2 labels and 2 classes"):
        read_data_set(stl)


def test_imagenet(tmp_path: Path) -> None:
    for number in range(1000):
        picture(tmp_path / f"n{1440764 + number:08d}" / "val.JPEG", size=2)
    words = read_data_set(tmp_path).words
    assert (len(words), words[0], words[-1]) == (1000, "tench", "toilet paper")
    (tmp_path / "n01440764" / "val.JPEG").unlink()
    (tmp_path / "n01440764").rmdir()
    with pytest.raises(EvaluationError, match=r"data.names=null: the folders' names, such as n01440765, are no words"):
        FolderChoices(tmp_path, None, None, None, 0)


def test_objectnet(tmp_path: Path) -> None:
    for name in ("alarm_clock", "banana", "beer_can"):
        picture(tmp_path / "images" / name / "a.png", grey=10)
    labels = {"alarm_clock": "Alarm clock", "banana": "Banana", "beer_can": "Beer can"}
    write(tmp_path / "mappings" / "folder_to_objectnet_label.json", json.dumps(labels))
    assert len(read_data_set(tmp_path).words) == 3
    write(
        tmp_path / "mappings" / "objectnet_to_imagenet_1k.json", '{"Alarm clock": "analog clock", "Banana": "banana"}'
    )
    found = read_data_set(tmp_path)
    assert found.words == ["Alarm clock", "Banana"]
    choices = FolderChoices(tmp_path, None, None, None, 0)
    assert choices.image(0).shape == (3, 16, 20)  # without the red frame of two pixels
    named = FolderChoices(tmp_path, {"alarm_clock": "clock", "banana": "fruit"}, None, None, 0)
    assert named.texts == ["clock", "fruit"]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path / "food" / "meta" / "test.txt", "apple_pie/2\nramen/3\n")
    picture(tmp_path / "food" / "images" / "ramen" / "3.jpg")
    with pytest.raises(EvaluationError, match=r"1 pictures are missing, such as .*apple_pie/2\.jpg"):
        read_data_set(tmp_path / "food")
    write(tmp_path / "cifar" / "batches.meta", "")
    with pytest.raises(EvaluationError, match=r"its Python version.*get the binary one, cifar-10-binary\.tar\.gz"):
        read_data_set(tmp_path / "cifar")
    write(tmp_path / "flowers" / "imagelabels.mat", "no file of Matlab")
    write(tmp_path / "flowers" / "setid.mat", "")
    (tmp_path / "flowers" / "jpg").mkdir()
    with pytest.raises(EvaluationError, match="looks like Flowers-102, but ValueError"):
        read_data_set(tmp_path / "flowers")
