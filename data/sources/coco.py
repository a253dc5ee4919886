"""COCO captions: the annotation file (captions_val2014.json and its like) and the folder of pictures."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from data.errors import DataError
from data.sources import HELD_OUT, TRAIN, Sample
from data.sources.files import PictureFiles, digest
from data.stream import Storage

ATTRIBUTION = "COCO (cocodataset.org): annotations CC BY 4.0, pictures under the terms of Flickr"


class CocoCaptions:
    """Pictures with their captions, in the order of their COCO ids.

    captions: URL of the annotation file. images: URL of the folder that holds its file names. name: for the manifest,
    for example "coco-2014-val". held_out: see HeldOut; by default all are held out, as validation pictures must be.
    The first caption stands in the .txt, all in the .json.
    Raises DataError when the annotation file is missing or of another format.
    """

    attribution = ATTRIBUTION
    splits = (TRAIN, HELD_OUT)

    def __init__(
        self, captions: str, images: str, storage: Storage, name: str = "coco", held_out: float | str = 1.0
    ) -> None:
        self.name = name
        content = read_coco(captions, storage)
        self._captions: dict[int, list[str]] = {}
        files = coco_files(captions, content)
        try:
            for annotation in sorted(content["annotations"], key=lambda found: int(found["id"])):
                caption = " ".join(str(annotation["caption"]).split())
                if caption:
                    self._captions.setdefault(int(annotation["image_id"]), []).append(caption)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{captions} is no COCO caption file: {error!r}. Give captions_val2014.json or a file like it"
            ) from error
        self._numbers = [number for number in files if number in self._captions]
        self.files = PictureFiles(images, storage, held_out, [files[number] for number in self._numbers])
        self.settings = {**self.files.settings, "captions": digest(self._captions)}
        self.dropped: Mapping[str, int] = {"no_caption": len(files) - len(self._numbers)}

    def __len__(self) -> int:
        return len(self.files)

    def key(self, position: int) -> str:
        return coco_key(self._numbers[position])

    def __getitem__(self, position: int) -> Sample:
        number = self._numbers[position]
        captions = self._captions[number]
        return coco_sample(self.files, position, number, captions[0], {"captions": captions})


def read_coco(url: str, storage: Storage) -> dict[str, Any]:
    """An annotation file. Raises DataError when it is missing or no COCO file."""
    try:
        content = json.loads(storage.read(url))
        content["images"], content["annotations"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{url} is no COCO caption file, nor one of boxes: {error!r}. Give captions_val2014.json, "
            "instances_val2017.json or a file like these"
        ) from error
    return content


def coco_files(url: str, content: Mapping[str, Any]) -> dict[int, str]:
    """File names by picture id, in the order of the ids. Raises DataError."""
    try:
        files = {int(image["id"]): str(image["file_name"]) for image in content["images"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{url}: its list of pictures isn't as COCO's: {error!r}") from error
    return {number: files[number] for number in sorted(files)}


def coco_key(number: int) -> str:
    """Of a picture with this COCO id."""
    return f"{number:012d}"


def coco_sample(
    files: PictureFiles, position: int, number: int, caption: str, metadata: Mapping[str, object]
) -> Sample:
    """The picture at a position, under its COCO id."""
    return replace(files.sample(position, caption, metadata), key=coco_key(number))
