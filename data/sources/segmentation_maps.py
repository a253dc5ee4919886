"""Pictures with maps of classes: COCO-Stuff, landscapes (LDM Sec. 4.3.2)."""

from collections.abc import Mapping

from data.sources import HELD_OUT, TRAIN, Sample
from data.sources.files import PictureFiles, read_below
from data.stream import Storage
from data.transforms import BadSample


class SegmentationMaps:
    """Every picture below a folder, by name, with the map of the same name below another one.

    images, maps: URLs of the folders; maps are .png of mode L or P, a class number in each pixel, as large as the
    picture. held_out: see HeldOut. name, attribution: for the manifest. A picture without a map is left out.
    Raises DataError.
    """

    splits = (TRAIN, HELD_OUT)
    dropped: Mapping[str, int] = {}

    def __init__(
        self,
        images: str,
        maps: str,
        storage: Storage,
        held_out: float | str = 0.01,
        name: str = "segmentation_maps",
        attribution: str = "unknown",
    ) -> None:
        self.name = name
        self.attribution = attribution
        self.maps = maps
        self.files = PictureFiles(images, storage, held_out)
        self.settings = self.files.settings

    def __len__(self) -> int:
        return len(self.files)

    def key(self, position: int) -> str:
        return self.files.keys[position]

    def __getitem__(self, position: int) -> Sample:
        name = self.files.names[position]
        try:
            found = read_below(self.maps, f"{name.rpartition('.')[0]}.png", self.files.storage)
        except BadSample as error:
            raise BadSample("no_segmentation", str(error)) from error
        return self.files.sample(position, metadata={"file_name": name}, members={"seg.png": found})
