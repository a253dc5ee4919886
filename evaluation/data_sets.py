"""Pictures of classes, in the folders that data sets of zero-shot classification are published as; their test splits.

Known are Food-101, CIFAR-10 (its binary version), FGVC-Aircraft, Oxford-IIIT Pets, Flowers-102, STL-10, ImageNet and
ObjectNet, each by what lies in its folder; and any folder that holds one for each class.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import EvaluationError
from evaluation.image_folder import SUFFIXES

WORDNET = re.compile(r"n\d{8}")
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class DataSet:
    """Pictures of classes.

    pictures: their files, or uint8 [N, H, W, 3]. labels: the place of each one's class in `classes`. classes: as the
    data set names them. words: the same for people. template: of a prompt; {} is the class. border: pixels at each edge
    that aren't part of the picture.
    """

    pictures: Sequence[Path] | NDArray[np.uint8]
    labels: Sequence[int]
    classes: Sequence[str]
    words: Sequence[str]
    template: str = "a photo of a {}."
    border: int = 0


def read_data_set(folder: Path) -> DataSet:
    """The test pictures of a data set as it is unpacked, or of a folder with one for each class.

    Raises EvaluationError when it is none of these, or files of it are missing or hold something else.
    """
    if not folder.is_dir():
        raise EvaluationError(f"data.folder={folder}: there is no such folder")
    for name, (marks, read) in LAYOUTS.items():
        if all((folder / mark).exists() for mark in marks):
            try:
                return _checked(read(folder), folder)
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                raise EvaluationError(
                    f"data.folder={folder}: it looks like {name}, but {type(error).__name__}: {error}; unpack it anew"
                ) from error
    if (folder / "batches.meta").exists():
        raise EvaluationError(
            f"data.folder={folder}: CIFAR-10 in its Python version, whose files are code to be run; get the binary "
            "one, cifar-10-binary.tar.gz"
        )
    return _checked(_folder_of_each_class(folder), folder)


def _checked(found: DataSet, folder: Path) -> DataSet:
    if len(found.classes) < 2:
        raise EvaluationError(f"data.folder={folder}: it holds {len(found.classes)} folders; give one for each class")
    paths = found.pictures if isinstance(found.pictures, list) else []
    if absent := [path for path in paths if not path.is_file()]:
        raise EvaluationError(f"data.folder={folder}: {len(absent)} pictures are missing, such as {absent[0]}")
    return found


def _folder_of_each_class(folder: Path) -> DataSet:
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    found: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        paths = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise EvaluationError(f"{folder / name}: no picture ({', '.join(sorted(SUFFIXES))}) of this class")
        found += [(path, label) for path in paths]
    words = [name.replace("_", " ") for name in classes]
    if len(classes) == IMAGENET_CLASSES and all(map(WORDNET.fullmatch, classes)):
        from open_clip import IMAGENET_CLASSNAMES  # by their WordNet ids

        words = list(IMAGENET_CLASSNAMES)
    return DataSet([path for path, _ in found], [label for _, label in found], classes, words)


def _labelled(pairs: Sequence[tuple[Path, str]], template: str, classes: Sequence[str] | None = None) -> DataSet:
    """Of files with the names of their classes. classes: all of them; None: those that there are."""
    names = sorted({name for _, name in pairs}) if classes is None else list(classes)
    places = {name: place for place, name in enumerate(names)}
    words = [name.replace("_", " ") for name in names]
    return DataSet([path for path, _ in pairs], [places[name] for _, name in pairs], names, words, template)


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _food101(folder: Path) -> DataSet:
    pairs = [(folder / "images" / f"{line}.jpg", line.split("/")[0]) for line in _lines(folder / "meta" / "test.txt")]
    return _labelled(pairs, "a photo of {}, a type of food.")


def _aircraft(folder: Path) -> DataSet:
    listed = [line.split(" ", 1) for line in _lines(folder / "data" / "images_variant_test.txt")]
    pairs = [(folder / "data" / "images" / f"{number}.jpg", variant) for number, variant in listed]
    return _labelled(pairs, "a photo of a {}, a type of aircraft.")


def _pets(folder: Path) -> DataSet:
    names = [line.split()[0] for line in _lines(folder / "annotations" / "test.txt")]
    pairs = [(folder / "images" / f"{name}.jpg", name.rsplit("_", 1)[0]) for name in names]
    return _labelled(pairs, "a photo of a {}, a type of pet.")


def _flowers(folder: Path) -> DataSet:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError
    from torchvision.datasets import Flowers102

    try:
        labels = loadmat(str(folder / "imagelabels.mat"))["labels"].ravel()
        numbers = loadmat(str(folder / "setid.mat"))["tstid"].ravel()
    except MatReadError as error:
        raise ValueError(f"imagelabels.mat or setid.mat: {error}") from error
    pairs = [
        (folder / "jpg" / f"image_{number:05d}.jpg", Flowers102.classes[labels[number - 1] - 1]) for number in numbers
    ]
    return _labelled(pairs, "a photo of a {}, a type of flower.", Flowers102.classes)


def _cifar10(folder: Path) -> DataSet:
    records = np.fromfile(folder / "test_batch.bin", np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    pictures = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    classes = _lines(folder / "batches.meta.txt")
    return _of_arrays(pictures, records[:, 0], classes, "a blurry photo of a {}.")


def _stl10(folder: Path) -> DataSet:
    pictures = np.fromfile(folder / "test_X.bin", np.uint8).reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
    labels = np.fromfile(folder / "test_y.bin", np.uint8) - 1
    return _of_arrays(pictures, labels, _lines(folder / "class_names.txt"), "a photo of a {}.")


def _of_arrays(pictures: NDArray[np.uint8], labels: NDArray[Any], classes: list[str], template: str) -> DataSet:
    if len(pictures) != len(labels) or len(labels) == 0 or labels.max() >= len(classes):
        raise ValueError(f"{len(pictures)} pictures, {len(labels)} labels and {len(classes)} classes don't fit")
    words = [name.replace("_", " ") for name in classes]
    return DataSet(np.ascontiguousarray(pictures), labels.tolist(), classes, words, template)


def _objectnet(folder: Path) -> DataSet:
    """The classes that ImageNet has too, where the file that tells them is there."""
    words = json.loads((folder / "mappings" / "folder_to_objectnet_label.json").read_text())
    shared = folder / "mappings" / "objectnet_to_imagenet_1k.json"
    known = json.loads(shared.read_text()) if shared.exists() else set(words.values())
    classes = sorted(name for name, word in words.items() if word in known)
    pairs = [(path, name) for name in classes for path in sorted((folder / "images" / name).glob("*.png"))]
    found = _labelled(pairs, "a photo of a {}.", classes)
    return DataSet(found.pictures, found.labels, classes, [str(words[name]) for name in classes], border=2)


LAYOUTS: dict[str, tuple[tuple[str, ...], Callable[[Path], DataSet]]] = {
    "Food-101": (("meta/test.txt", "images"), _food101),
    "CIFAR-10": (("test_batch.bin", "batches.meta.txt"), _cifar10),
    "FGVC-Aircraft": (("data/images_variant_test.txt",), _aircraft),
    "Oxford-IIIT Pets": (("annotations/test.txt", "images"), _pets),
    "Flowers-102": (("imagelabels.mat", "setid.mat", "jpg"), _flowers),
    "STL-10": (("test_X.bin", "test_y.bin", "class_names.txt"), _stl10),
    "ObjectNet": (("mappings/folder_to_objectnet_label.json", "images"), _objectnet),
}
"""By name: the files that tell it, and what reads it."""
