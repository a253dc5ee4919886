"""COCO captions: the annotation file (captions_val2014.json and its like) and the folder of pictures."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping

from data.errors import DataError, NotFound
from data.sources import HELD_OUT, TRAIN, Sample
from data.stream import Storage, join


class CocoCaptions:
    """Pictures with their captions, in the order of their COCO ids.

    captions: URL of the annotation file. images: URL of the folder that holds its file names.
    name: for the manifest, for example "coco-2014-val". training: pictures to train on; by default all are
    held out, as validation pictures must be. The first caption stands in the .txt, all in the .json.
    Raises DataError when the annotation file is missing or of another format.
    """

    attribution = "COCO (cocodataset.org): annotations CC BY 4.0, pictures under the terms of Flickr"

    def __init__(
        self, captions: str, images: str, storage: Storage, name: str = "coco", training: bool = False
    ) -> None:
        self.name = name
        self.images = images
        self.storage = storage
        self.training = training
        self.settings: Mapping[str, object] = {"captions": captions.rsplit("/", 1)[-1], "training": training}
        files, texts = _read(captions, storage)
        self._files = {number: files[number] for number in sorted(files) if texts.get(number)}
        self._captions = texts
        self._without_caption = len(files) - len(self._files)
        self._missing: Counter[str] = Counter()
        self.splits = (TRAIN, HELD_OUT)

    @property
    def dropped(self) -> Mapping[str, int]:
        """Pictures without a caption, and those that the last iteration did not find."""
        return {"no_caption": self._without_caption, **self._missing}

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Sample]:
        self._missing.clear()
        for number, file_name in self._files.items():
            try:
                image = self.storage.read(join(self.images, file_name))
            except NotFound:
                self._missing["missing"] += 1
                continue
            captions = self._captions[number]
            extension = file_name.rsplit(".", 1)[-1].lower()
            yield Sample(f"{number:012d}", image, extension, captions[0], {"captions": captions})

    def split(self, key: str) -> str:
        """All pictures are for training, or all are held out."""
        return TRAIN if self.training else HELD_OUT


def _read(url: str, storage: Storage) -> tuple[dict[int, str], dict[int, list[str]]]:
    """File names and captions by image id; captions in the order of their annotation ids."""
    try:
        content = json.loads(storage.read(url))
        files = {int(image["id"]): str(image["file_name"]) for image in content["images"]}
        texts: dict[int, list[str]] = {}
        for annotation in sorted(content["annotations"], key=lambda found: int(found["id"])):
            caption = " ".join(str(annotation["caption"]).split())
            if caption:
                texts.setdefault(int(annotation["image_id"]), []).append(caption)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{url} is no COCO caption file: {error!r}. Give captions_val2014.json or a file like it"
        ) from error
    return files, texts
