"""What lies in the folder that `data=FOLDER` names: shards, or COCO as it is published."""

from __future__ import annotations

from pathlib import PurePosixPath

from hydra.utils import instantiate
from omegaconf import DictConfig

from data.stream import Storage, join
from evaluation.errors import EvaluationError

KEY = "data.folder"
IMAGES = "images"


def data_by_name(arguments: list[str]) -> list[str]:
    """The same arguments, with data.folder=FOLDER for data=FOLDER."""
    return [f"{KEY}={a.removeprefix('data=')}" if a.startswith("data=") and a[5:6] != "{" else a for a in arguments]


def with_data_of_folder(config: DictConfig) -> DictConfig:
    """A configuration of `ldm evaluate` whose data.shards, data.captions and data.images say what data.folder holds.

    Raises EvaluationError when these name something else, or it can't be told which captions or pictures are meant.
    """
    folder = config.data.folder
    if folder is None:
        return config
    if config.data.captions is not None or config.data.images is not None:
        raise EvaluationError(f"{KEY}={folder}: give either that, or data.captions and data.images")
    config = config.copy()
    captions = _captions(str(folder), storage := instantiate(config.data.storage))
    if captions is None:
        if config.data.shards is not None:
            raise EvaluationError(f"data.shards={config.data.shards}: {KEY}={folder} is given too; leave one out")
        config.data.shards = folder
    else:
        config.data.shards = config.data.shards or join(str(folder), "shards")
        config.data.captions, config.data.images = captions, _images(str(folder), captions, storage)
    return config


def _captions(folder: str, storage: Storage) -> str | None:
    """COCO's file of captions; None where the folder has shards, or nothing that is known."""
    here = storage.list(folder)
    if any(url.endswith((".tar", "/index.json", "/manifest.json")) for url in here):
        return None
    both = [*here, *storage.list(join(folder, "annotations"))]
    found = [url for url in both if PurePosixPath(url).match("captions_*.json")]
    if len(found) > 1:
        raise EvaluationError(
            f"{KEY}={folder}: {' and '.join(found)} are there; name one of them in data.captions, its pictures in "
            "data.images, and in data.shards a folder to write them to as shards"
        )
    return found[0] if found else None


def _images(folder: str, captions: str, storage: Storage) -> str:
    """The folder of the pictures: val2014 of captions_val2014.json, or images."""
    places = [join(folder, name) for name in (PurePosixPath(captions).stem.removeprefix("captions_"), IMAGES)]
    for place in places:
        if storage.list(place):
            return place
    raise EvaluationError(
        f"{KEY}={folder}: {captions} is there, and no pictures in {' or '.join(places)}; put them there, or name "
        "data.captions, data.images and data.shards"
    )
