"""ImageNet: a folder for each class, and the class number that models are conditioned on."""

import re
from collections.abc import Mapping

from data.errors import DataError
from data.sources import HELD_OUT, TRAIN, LeftOut, Sample
from data.sources.files import PictureFiles
from data.sources.tables import read_table
from data.stream import Storage

_SYNSET = re.compile(r"n\d{8}")


class ImageNet:
    """Pictures in folders named by synsets, such as train/n01440764/n01440764_10026.JPEG.

    The class number is the place of the synset among all, sorted, from 0: the numbers that published models know.
    folder: URL of the folder that train/ and val/ are in. held_out: see HeldOut. classes: how many there have to be.
    flat_labels: URL of LOC_val_solution.csv (columns ImageId and PredictionString), where the pictures of val/ lie in
    no folders of classes. Raises DataError.
    """

    name = "imagenet"
    attribution = "ImageNet (image-net.org), ILSVRC 2012: for non-commercial research and education, by its terms"
    splits = (TRAIN, HELD_OUT)
    dropped: Mapping[str, int] = {}

    def __init__(
        self,
        folder: str,
        storage: Storage,
        held_out: float | str = "val/*",
        classes: int = 1000,
        flat_labels: str | None = None,
    ) -> None:
        self.files = PictureFiles(folder, storage, held_out)
        labels = {} if flat_labels is None else _labels(flat_labels, storage)
        self._synsets = [_synset(name, labels) for name in self.files.names]
        found = sorted({synset for synset in self._synsets if synset is not None})
        if len(found) != classes:
            raise DataError(
                f"{folder} has folders of {len(found)} synsets, {classes} are expected, or their numbers would be "
                "others than a model's; set source.classes for another set of classes"
            )
        self._numbers = {synset: number for number, synset in enumerate(found)}
        self.settings = {**self.files.settings, "classes": classes}

    def __len__(self) -> int:
        return len(self.files)

    def key(self, position: int) -> str:
        return self.files.keys[position]

    def __getitem__(self, position: int) -> Sample:
        synset = self._synsets[position]
        if synset is None:
            raise LeftOut("no_label")
        return self.files.sample(position, metadata={"label": self._numbers[synset], "synset": synset})


def _synset(name: str, labels: Mapping[str, str]) -> str | None:
    parts = name.split("/")
    if len(parts) > 1 and _SYNSET.fullmatch(parts[-2]):
        return parts[-2]
    return labels.get(parts[-1].rpartition(".")[0])


def _labels(url: str, storage: Storage) -> dict[str, str]:
    """Synsets by the names of pictures without extension."""
    try:
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in read_table(url, storage)}
    except (KeyError, AttributeError, IndexError, TypeError) as error:
        raise DataError(f"{url} isn't like LOC_val_solution.csv: {error!r}") from error
