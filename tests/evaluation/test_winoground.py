"""Winoground's scores as the paper defines them."""

import pytest
import torch

from evaluation.winoground import winoground_scores


def example(c0_i0: float, c0_i1: float, c1_i0: float, c1_i1: float) -> torch.Tensor:
    return torch.tensor([[c0_i0, c0_i1], [c1_i0, c1_i1]])


def test_scores_of_known_examples() -> None:
    right = example(3, 1, 1, 3)
    text_alone = example(2, 5, 1, 6)  # image 1 scores higher with both captions
    image_alone = example(2, 1, 5, 6)  # caption 1 scores higher with both images
    even = example(1, 1, 1, 1)
    found = winoground_scores(torch.stack([right, text_alone, image_alone, even]))
    assert found == {"text": 0.5, "image": 0.5, "group": 0.25}


def test_scores_by_chance() -> None:
    found = winoground_scores(torch.rand(200_000, 2, 2, generator=torch.Generator().manual_seed(0)))
    assert found["text"] == pytest.approx(1 / 4, abs=0.005)
    assert found["image"] == pytest.approx(1 / 4, abs=0.005)
    assert found["group"] == pytest.approx(1 / 6, abs=0.005)


def test_images_change_places_with_captions() -> None:
    scores = torch.rand(500, 2, 2, generator=torch.Generator().manual_seed(1))
    there, back = winoground_scores(scores), winoground_scores(scores.mT)
    assert (there["text"], there["image"], there["group"]) == (back["image"], back["text"], back["group"])


def test_what_is_no_score_is_named() -> None:
    for wrong in (torch.zeros(0, 2, 2), torch.zeros(3, 2), torch.full((1, 2, 2), float("nan"))):
        with pytest.raises(ValueError, match="scores h"):
            winoground_scores(wrong)
