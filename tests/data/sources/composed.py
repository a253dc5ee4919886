"""Sources as conf/source has them, and their samples as an experiment's inputs read them."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from PIL import Image
from torch import Tensor

from data.inputs import Parts
from data.pictures import ImageReader, scaled
from data.prepare import members_of
from data.sources import Sample, Source
from data.transforms import choose_caption, details_of
from training.compose import composed


def source(name: str, **settings: object) -> Source:
    """conf/source/`name`.yaml with these settings. Raises what the source itself raises."""
    if name == "img2dataset":
        settings = {"output": None, **settings}  # it would write an index to url
    overrides = [f"source.{key}={_quoted(value)}" for key, value in settings.items()]
    config = composed("prepare", [f"source={name}", "url=nowhere", *overrides])
    try:
        return instantiate(config.source, _convert_="all")  # type: ignore[no-any-return]
    except InstantiationException as error:
        assert error.__cause__ is not None
        raise error.__cause__ from error


def inputs_of(experiment: str, sample: Sample) -> Mapping[str, Tensor]:
    """What the experiment's conditioners would be given of a sample, after its way through a shard."""
    config = composed("train", [f"experiment={experiment}", "data.url=nowhere"])
    members = members_of(sample)
    generator = np.random.default_rng(0)
    side = config.data.image_size
    (seen,) = scaled([ImageReader(side, config.data.scaled_side or side, False, 1, 10**7).read(members, generator)])
    details = details_of(members)
    caption = choose_caption(members, details, generator)
    parts = Parts(members, details, caption, seen.image, seen.view, generator)
    return {name: kind.read(parts) for name, kind in instantiate(config.inputs).items()}


def picture(number: int, width: int = 40, height: int = 30, kind: str = "JPEG") -> bytes:
    """Smooth colours, different for each number."""
    coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def _quoted(value: Any) -> str:
    if value is None:
        return "null"
    return f"'{value}'" if isinstance(value, str) and value[0] not in "{[" else str(value)
