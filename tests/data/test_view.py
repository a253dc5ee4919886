import numpy as np
import pytest
from made_files import make_png
from PIL import Image

from data.transforms import decode_image
from data.view import View, chosen, middle

SMOOTH, SHARP = Image.Resampling.LANCZOS, Image.Resampling.NEAREST


def generator(number: int = 0) -> np.random.Generator:
    return np.random.default_rng(number)


def test_the_middle_in_its_aspect() -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 255
    assert (middle(10, 30, 10).cut(wide, 10, SMOOTH) == 255).mean() > 0.95
    assert middle(30, 10, 7).cut(wide.transpose(1, 0, 2), 7, SMOOTH).shape == (7, 7, 3)


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    image = decode_image(make_png(1))
    assert (chosen(8, 8, 8, 8, False, generator()).cut(image, 8, SMOOTH) == image).all()


def test_half_of_the_pictures_are_mirrored() -> None:
    image = decode_image(make_png(1))
    views = [chosen(8, 8, 8, 8, True, generator(n)) for n in range(200)]
    assert 70 < sum(view.mirrored for view in views) < 130
    assert all((v.cut(image, 8, SMOOTH) == (image[:, ::-1] if v.mirrored else image)).all() for v in views)


def test_random_squares_reach_every_place_and_keep_the_scale() -> None:
    picture = np.arange(24, dtype=np.uint8)[None, :].repeat(12, 0)
    views = [chosen(12, 24, 6, 12, False, generator(n)) for n in range(300)]
    lefts = [view.box[0] for view in views]
    assert min(lefts) < 1 and max(lefts) > 17
    assert all(view.box[2] - view.box[0] == pytest.approx(6) for view in views)
    cut = views[0].cut(picture, 6, SHARP)
    assert cut.shape == (6, 6) and abs(int(cut[0, 0]) - lefts[0]) <= 1


@pytest.mark.parametrize("scaled_side", [16, 20])
@pytest.mark.parametrize(("height", "width"), [(100, 60), (60, 100), (13, 200), (20, 12), (7, 5)])
def test_a_rectangle_is_covered_in_the_pictures_aspect(height: int, width: int, scaled_side: int) -> None:
    picture = np.zeros((height, width, 3), np.uint8)
    places = set()
    for number in range(50):
        view = chosen(height, width, 16, scaled_side, False, generator(number), (20, 12))
        left, top, right, bottom = view.box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert (right - left) / (bottom - top) == pytest.approx(12 / 20, rel=0.01)
        filled = max((right - left) / width, (bottom - top) / height)
        assert filled == pytest.approx(16 / scaled_side, rel=0.04)
        assert view.cut_to(picture, (20, 12), SMOOTH).shape == (20, 12, 3)
        places.add(view.box[:2])
    assert (len(places) == 1) == (scaled_side == 16)


def test_the_square_is_one_of_the_rectangles() -> None:
    for number in range(50):
        height, width = (int(side) for side in generator(number).integers(16, 300, 2))
        of_square, of_rectangle = (
            chosen(height, width, 16, 19, True, generator(number), shape) for shape in (None, (16, 16))
        )
        assert of_square == of_rectangle


def test_boxes_follow_the_picture() -> None:
    """A box around a mark, in shares of the view, is where the mark is found in the cut-out."""
    picture = np.zeros((40, 60), dtype=np.uint8)
    picture[10:20, 30:36] = 255
    for number in range(20):
        view = chosen(40, 60, 30, 40, True, generator(number))
        box = view.within((30, 10, 36, 20))
        rows, columns = np.nonzero(view.cut(picture, 30, SHARP))
        if box is None:
            assert len(rows) == 0
            continue
        found = (columns.min() / 30, rows.min() / 30, (columns.max() + 1) / 30, (rows.max() + 1) / 30)
        assert np.allclose(box, found, atol=1.5 / 30)


def test_boxes_outside_are_nothing_and_shares_are_of_the_picture() -> None:
    view = View(40, 60, (10.0, 0.0, 50.0, 40.0))
    assert view.within((0, 0, 9, 40)) is None
    assert view.within((0, 0, 60, 40)) == (0, 0, 1, 1)
    assert np.allclose(view.share, (10 / 60, 0, 50 / 60, 1))
    assert np.allclose(View(40, 60, (0.0, 0.0, 40.0, 40.0), mirrored=True).share, (20 / 60, 0, 1, 1))
