"""The same tokens as the libraries that published them."""

import open_clip
import pytest
import torch

from data.clip_tokenizer import ClipTokenizer
from data.errors import DataError

CAPTIONS = ["a photo of a Cat", "", "naïve café, 東京! 🙂 it's 10:30", "word " * 100]


@pytest.mark.parametrize("length", [8, 77])
def test_zero_padding_is_open_clip_s(length: int) -> None:
    published = open_clip.tokenizer.SimpleTokenizer(context_length=length)(CAPTIONS)
    assert torch.equal(ClipTokenizer(length, padding="zero")(CAPTIONS), published)


def test_end_padding_is_that_of_stable_diffusion() -> None:
    """As transformers' tokenizer pads, whose vocabulary and merges are the same: the end token, again and again."""
    tokens = ClipTokenizer(77)(CAPTIONS)
    assert tokens[0].tolist() == [49406, 320, 1125, 539, 320, 2368] + [49407] * 71  # known from the published model
    assert tokens[1].tolist() == [49406] + [49407] * 76
    assert tokens[3, -1] == 49407 and tokens[3, -2] != 49407
    zero = ClipTokenizer(77, padding="zero")(CAPTIONS)
    assert torch.equal(torch.where(zero == 0, 49407, zero), tokens)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(DataError, match="length=1"):
        ClipTokenizer(1)
    with pytest.raises(DataError, match="padding=max"):
        ClipTokenizer(77, "max")  # type: ignore[arg-type]
    assert ClipTokenizer().vocabulary_size == 49408
