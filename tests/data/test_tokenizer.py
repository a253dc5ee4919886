from pathlib import Path

import pytest
import torch

from data.errors import DataError
from data.tokenizer import VOCABULARY, BertTokenizer

CAPTIONS = [
    "",
    "a dog",
    "Flag of Åland\n\tIslands… “quoted” 🙂 naïve",
    "你好 [SEP] [MASK] hello [PAD]",
    "x " * 200,
    "a" * 300,
    "unbelievably-hyphenated, 'words' & 3.14159 U.S.",
    "\x00\ufffd zero\u200bwidth",
]


@pytest.mark.parametrize("length", [77, 5, 2])
def test_equal_to_the_published_tokenizer(length: int) -> None:
    from transformers.models.bert.tokenization_bert import BertTokenizer as Published

    vocabulary = {token: number for number, token in enumerate(VOCABULARY.read_text().split("\n")) if token}
    published = Published(vocab=vocabulary)(
        CAPTIONS, truncation=True, max_length=length, padding="max_length", return_tensors="pt"
    )["input_ids"]
    tokens = BertTokenizer(length)(CAPTIONS)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, published)


def test_known_tokens() -> None:
    assert BertTokenizer(6)(["a dog"]).tolist() == [[101, 1037, 3899, 102, 0, 0]]
    assert BertTokenizer(6).vocabulary_size == 30522
    assert BertTokenizer(6)([]).shape == (0, 6)


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="length=1"):
        BertTokenizer(1)
    with pytest.raises(DataError, match=r"nothing\.txt"):
        BertTokenizer(8, tmp_path / "nothing.txt")
    (tmp_path / "short.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"lacks \[CLS\]"):
        BertTokenizer(8, tmp_path / "short.txt")
