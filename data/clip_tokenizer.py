"""Captions to the byte-pair tokens of CLIP, which Stable Diffusion reads."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from data.errors import DataError

Padding = Literal["end", "zero"]
PADDING = ("end", "zero")
PUBLISHED = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
"""What open_clip's special tokens are called in the published vocabulary."""
_READ_CHARACTERS = 4096  # of a caption; the time for a word grows with more than its length
_KEPT_WORDS = 1 << 17


class ClipTokenizer:
    """Lower-case byte-pair tokens (open_clip's vocabulary of 49,408), framed by a start and an end token.

    length: tokens per caption, at least 2; longer captions are cut, and end with the end token all the same. padding:
    "end" fills up with the end token, as Stable Diffusion v1 was trained; "zero" with token 0, as open_clip does and
    Stable Diffusion v2. The first 4,096 characters of a caption are read. Raises DataError for values out of range.
    """

    def __init__(self, length: int = 77, padding: Padding = "end") -> None:
        if length < 2:
            raise DataError(f"length={length} must be at least 2: start and end take two tokens")
        if padding not in PADDING:
            raise DataError(f"padding={padding}: choose one of {', '.join(PADDING)}")
        from open_clip.tokenizer import SimpleTokenizer

        self.length = length
        self.padding = padding
        self._tokenizer = SimpleTokenizer(context_length=length)
        self._special = dict(self._tokenizer.cache)
        self.vocabulary_size = self._tokenizer.vocab_size
        self._filler = self._tokenizer.eot_token_id if padding == "end" else 0

    @property
    def vocabulary(self) -> dict[str, int]:
        """The published tokens with their numbers."""
        return {PUBLISHED.get(token, token): number for token, number in self._tokenizer.encoder.items()}

    @property
    def merges(self) -> list[str]:
        """The pairs that are joined to one token, "a b", those that are joined first at the front."""
        return [" ".join(pair) for pair in self._tokenizer.bpe_ranks]

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """int64 [B, length]. The empty caption, "", is the unconditional one."""
        start, end = self._tokenizer.sot_token_id, self._tokenizer.eot_token_id
        tokens = torch.full((len(captions), self.length), self._filler, dtype=torch.int64)
        for row, caption in zip(tokens, captions, strict=True):
            words = [start, *self._tokenizer.encode(caption[:_READ_CHARACTERS])[: self.length - 2], end]
            row[: len(words)] = torch.tensor(words)
        if len(self._tokenizer.cache) > _KEPT_WORDS:  # it would keep every word that it ever meets
            self._tokenizer.cache = dict(self._special)
        return tokens
