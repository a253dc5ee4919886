"""COCO boxes: pictures with their objects, for layout to image (LDM Sec. 4.3.1)."""

from collections.abc import Mapping, Sequence
from typing import Any

from data.errors import DataError
from data.sources import HELD_OUT, TRAIN, Sample
from data.sources.coco import ATTRIBUTION, coco_files, coco_key, coco_sample, read_coco
from data.sources.files import PictureFiles, digest
from data.stream import Storage


class CocoBoxes:
    """Pictures with the classes and boxes of their objects, in the order of their COCO ids.

    annotations: URL of instances_train2017.json; or a list, with stuff_train2017.json beside it. Classes are numbered
    from 0 in the order of their COCO ids, over all files. images: URL of the folder that holds the file names.
    held_out: see HeldOut. Pictures without an object are left out. Raises DataError.
    """

    attribution = ATTRIBUTION
    splits = (TRAIN, HELD_OUT)

    def __init__(
        self,
        annotations: str | Sequence[str],
        images: str,
        storage: Storage,
        name: str = "coco_boxes",
        held_out: float | str = 0.01,
    ) -> None:
        self.name = name
        urls = [annotations] if isinstance(annotations, str) else list(annotations)
        contents = {url: read_coco(url, storage) for url in urls}
        files: dict[int, str] = {}
        objects: dict[int, list[dict[str, Any]]] = {}
        try:
            names = {int(c["id"]): str(c["name"]) for content in contents.values() for c in content["categories"]}
            numbers = {identity: number for number, identity in enumerate(sorted(names))}
            for url, content in contents.items():
                files |= coco_files(url, content)
                for found in content["annotations"]:
                    left, top, width, height = (float(value) for value in found["bbox"])
                    identity = int(found["category_id"])
                    box = [left, top, left + width, top + height]
                    entry = {"class": numbers[identity], "name": names[identity], "box": box}
                    objects.setdefault(int(found["image_id"]), []).append(entry)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{urls} aren't COCO files of boxes: {error!r}. Give instances_train2017.json") from error
        self._objects = objects
        self._numbers = [number for number in sorted(files) if number in objects]
        self.files = PictureFiles(images, storage, held_out, [files[number] for number in self._numbers])
        self.settings = {**self.files.settings, "objects": digest(objects), "classes": len(numbers)}
        self.dropped: Mapping[str, int] = {"no_layout": len(files) - len(self._numbers)}

    def __len__(self) -> int:
        return len(self.files)

    def key(self, position: int) -> str:
        return coco_key(self._numbers[position])

    def __getitem__(self, position: int) -> Sample:
        number = self._numbers[position]
        return coco_sample(self.files, position, number, "", {"objects": self._objects[number]})
