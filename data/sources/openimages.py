"""OpenImages: pictures with the boxes of their objects, for layout to image (LDM Sec. 4.3.1)."""

import csv
import io
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.errors import DataError
from data.sources import HELD_OUT, TRAIN, Sample
from data.sources.files import PictureFiles
from data.stream import Storage
from data.transforms import BadSample

_EXIF_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)
_EDGES = ("XMin", "YMin", "XMax", "YMax")


class OpenImagesBoxes:
    """Pictures with the classes and boxes of their objects, by their ids.

    boxes: URL of train-annotations-bbox.csv (oidv6-train-annotations-bbox.csv). classes: URL of
    class-descriptions-boxable.csv; the number of a class is its line, from 0. images: URL of the folder with <id>.jpg.
    held_out: see HeldOut. In the .csv boxes are shares of the picture's sides, in the samples pixels.
    Raises DataError.
    """

    name = "openimages"
    attribution = "Open Images (storage.googleapis.com/openimages): annotations CC BY 4.0, pictures CC BY 2.0"
    splits = (TRAIN, HELD_OUT)

    def __init__(self, images: str, boxes: str, classes: str, storage: Storage, held_out: float | str = 0.01) -> None:
        lines = csv.reader(io.StringIO(_text(classes, storage), newline=""))
        described = [line for line in lines if len(line) >= 2 and line[0] != "LabelName"]
        self._names = [line[1] for line in described]
        numbers = {line[0]: number for number, line in enumerate(described)}
        ids, found, edges = _columns(boxes, numbers, storage)
        known = found >= 0
        if not known.any():
            raise DataError(f"{boxes} has no box of the {len(numbers)} classes in {classes}: check the files")
        ids, found, edges = ids[known], found[known], edges[known]
        order = np.argsort(ids, kind="stable")  # boxes of a picture stay in the order of the file
        each, self._starts = np.unique(ids[order], return_index=True)
        self._ends = np.append(self._starts[1:], len(ids))
        self._classes = found[order]
        self._boxes = edges[order]
        self.files = PictureFiles(images, storage, held_out, [f"{identity.decode()}.jpg" for identity in each.tolist()])
        self.settings = {**self.files.settings, "boxes": len(ids), "classes": len(numbers)}
        self.dropped = {"box_of_unknown_class": len(known) - len(ids)}

    def __len__(self) -> int:
        return len(self.files)

    def key(self, position: int) -> str:
        return self.files.keys[position]

    def __getitem__(self, position: int) -> Sample:
        sample = self.files.sample(position)
        width, height = _upright_size(sample.image)
        here = slice(self._starts[position], self._ends[position])
        pixels = self._boxes[here] * (width, height, width, height)
        objects = [
            {"class": number, "name": self._names[number], "box": [round(edge, 2) for edge in box]}
            for number, box in zip(self._classes[here].tolist(), pixels.tolist(), strict=True)
        ]
        return replace(sample, metadata={"objects": objects})


def _columns(
    url: str, numbers: Mapping[str, int], storage: Storage
) -> tuple[NDArray[np.bytes_], NDArray[np.int32], NDArray[np.float64]]:
    """Of each line: picture id, number of the class or -1, and box; a megabyte of lines at a time."""
    from pyarrow import binary, csv, float64, string

    kinds = {"ImageID": binary(), "LabelName": string(), **dict.fromkeys(_EDGES, float64())}
    options = csv.ConvertOptions(include_columns=list(kinds), column_types=kinds)
    ids, found, edges = [], [], []
    try:
        with storage.open(url) as (file, _), csv.open_csv(file, convert_options=options) as lines:
            for piece in lines:
                identity, label, *box = piece.columns
                ids.append(np.array(identity.to_pylist(), dtype=np.bytes_))
                found.append(np.array([numbers.get(name, -1) for name in label.to_pylist()], dtype=np.int32))
                edges.append(np.stack([edge.to_numpy() for edge in box], axis=1))
    except (KeyError, ValueError) as error:  # pyarrow's are of these kinds
        raise DataError(
            f"{url} isn't like train-annotations-bbox.csv, with ImageID, LabelName, {', '.join(_EDGES)}: {error!r}"
        ) from error
    return np.concatenate(ids), np.concatenate(found), np.concatenate(edges)


def _upright_size(image: bytes) -> tuple[int, int]:
    """Width and height in pixels as `decode_image` gives them, from the header alone. Raises BadSample."""
    try:
        with Image.open(io.BytesIO(image), formats=("JPEG",)) as picture:
            lying = picture.getexif().get(_EXIF_ORIENTATION) in _LYING
            return (picture.height, picture.width) if lying else picture.size
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files
        raise BadSample("undecodable", f"{type(error).__name__}: {error}") from error


def _text(url: str, storage: Storage) -> str:
    try:
        return storage.read(url).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{url} is no text: {error}") from error
