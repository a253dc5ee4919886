"""Captions to the WordPiece tokens of BERT (uncased), which the paper's text-to-image model reads."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from data.errors import DataError

VOCABULARY = Path(__file__).with_name("bert_base_uncased_vocab.txt")  # 30,522 tokens, Apache-2.0


class BertTokenizer:
    """Lower-case WordPiece tokens, framed by [CLS] and [SEP] and padded with [PAD] to `length`.

    length: tokens per caption, at least 2; longer captions are cut. LDM App. E.2.1 uses 77.
    vocabulary: file with one token a line, or the `tokenizer.json` of the tokenizers library; the attribute has its
    tokens with their numbers. Raises DataError when it can't be read or lacks a special token.
    """

    def __init__(self, length: int = 77, vocabulary: Path = VOCABULARY) -> None:
        if length < 2:
            raise DataError(f"length={length} must be at least 2: [CLS] and [SEP] take two tokens")
        ids = _read(Path(vocabulary))
        missing = [token for token in ("[CLS]", "[SEP]", "[PAD]", "[UNK]") if token not in ids]
        if missing:
            raise DataError(f"vocabulary {vocabulary} lacks {', '.join(missing)}: use an uncased BERT vocabulary")
        self.length = length
        self.vocabulary = ids
        self.vocabulary_size = len(ids)
        tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
        )
        tokenizer.decoder = decoders.WordPiece()
        tokenizer.add_special_tokens(["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"])
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_id=ids["[PAD]"], pad_token="[PAD]")
        self._tokenizer = tokenizer

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """int64 [B, length]. The empty caption, "", is the unconditional one."""
        # one by one: the threads of a whole batch at once would not survive the fork into loader workers
        rows = [self._tokenizer.encode(caption).ids for caption in captions]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.length)


def _read(path: Path) -> dict[str, int]:
    """Tokens with their numbers, which rise."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return {token: number for number, token in enumerate(text.split("\n")) if token}
        return dict(sorted(json.loads(text)["model"]["vocab"].items(), key=lambda item: item[1]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"vocabulary {path} cannot be read: {error}") from error
