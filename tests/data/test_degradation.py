"""Laws of the degradation that blind super-resolution trains on."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data import degradation
from data.degradation import STAGES, degraded
from data.errors import DataError
from data.inputs.low_resolution import LowResolution

ROUGH = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
PICTURE = np.array(Image.fromarray(ROUGH).resize((64, 64), Image.Resampling.BICUBIC))


def bicubic(image: NDArray[np.uint8], size: int) -> NDArray[np.float64]:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)


def test_a_key_has_one_result_and_others_have_others() -> None:
    results = [degraded(PICTURE, 16, np.random.default_rng((3, number))) for number in (0, 0, 1, 2)]
    assert all(small.shape == (16, 16, 3) and small.dtype == np.uint8 for small in results)
    assert (results[0] == results[1]).all()
    for other in results[2:]:
        assert (results[0] != other).any()


@pytest.mark.parametrize(("side", "size"), [(64, 16), (64, 64), (64, 23), (32, 8), (24, 3)])
def test_any_size_up_to_the_image_s_own(side: int, size: int) -> None:
    for number in range(8):
        small = degraded(PICTURE[:side, :side], size, np.random.default_rng(number))
        assert small.shape == (size, size, 3)


def test_every_stage_occurs_in_every_place_and_the_last_to_downsample_gives_the_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[str]] = []

    def recorded(name: str, stage: Callable[..., NDArray[np.float32]]) -> Callable[..., NDArray[np.float32]]:
        def run(x: NDArray[np.float32], size: int, generator: np.random.Generator) -> NDArray[np.float32]:
            seen[-1].append(name)
            return stage(x, size, generator)

        return run

    monkeypatch.setattr(degradation, "STAGES", {name: recorded(name, stage) for name, stage in STAGES.items()})
    for number in range(150):
        seen.append([])
        degraded(PICTURE[:32, :32], 8, np.random.default_rng(number))
    assert all(sorted(order) == sorted(STAGES) for order in seen)
    assert all(order.index("downsample") < order.index("resize") for order in seen)
    places = Counter((name, order.index(name)) for order in seen for name in order)
    for name in ("blur", "noise", "camera", "jpeg"):
        assert all(places[name, place] for place in range(6)), name


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_changes_pictures_but_a_little(name: str) -> None:
    x = PICTURE.astype(np.float32) / 255
    changed = 0
    for number in range(30):
        after = STAGES[name](x, 16, np.random.default_rng(number)).clip(0, 1)
        assert after.dtype == np.float32
        assert abs(after.mean() - x.mean()) < 0.02, "none is brighter or darker"
        changed += after.shape != x.shape or not np.array_equal(after, x)
    assert changed >= {"camera": 3, "jpeg": 20}.get(name, 30)


def test_jpeg_is_really_encoded_and_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is what a decoder gives of one of the qualities, bit for bit."""
    qualities: list[int] = []
    save = Image.Image.save

    def watched(image: Image.Image, to: object, kind: str, quality: int) -> None:
        qualities.append(quality)
        save(image, to, kind, quality=quality)  # type: ignore[arg-type]
        assert to.getvalue()[:2] == bytes([0xFF, 0xD8])  # type: ignore[attr-defined]

    monkeypatch.setattr(Image.Image, "save", watched)
    for number in range(60):
        degraded(PICTURE[:32, :32], 8, np.random.default_rng(number))
    assert 60 < len(qualities) <= 120, "at the end of each, and before in most"
    assert min(qualities) < 84 and max(qualities) > 91 and set(qualities) <= set(range(80, 96))


def test_it_is_the_picture_still_and_poorer_than_bicubic() -> None:
    clean = bicubic(PICTURE, 16)
    errors = [
        np.abs(degraded(PICTURE, 16, np.random.default_rng(n)).astype(np.float64) - clean).mean() for n in range(40)
    ]
    assert 1 < np.mean(errors) < 30
    assert max(errors) < np.abs(clean - clean.mean()).mean()


def test_without_a_width_a_kernel_is_the_identity_and_it_sums_to_one() -> None:
    x = PICTURE.astype(np.float32) / 255
    np.testing.assert_allclose(degradation._convolved(x, degradation._gaussian(7, 0.0, 0.0, 0.3)), x, atol=1e-5)
    kernel = degradation._gaussian(25, 4.0, 1.0, 0.0)
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    white = np.ones((5, 5, 3), np.float32)
    np.testing.assert_allclose(degradation._convolved(white, kernel), white, atol=1e-5)


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(DataError, match="degradation=jpeg: choose one of bicubic, bsr"):
        LowResolution(8, "jpeg")  # type: ignore[arg-type]
