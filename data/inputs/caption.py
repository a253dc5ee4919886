"""The caption, as tokens."""

from collections.abc import Callable, Sequence

from torch import Tensor

from data.inputs import Parts
from data.transforms import BadSample


class Caption:
    """The sample's caption through a tokenizer; the empty caption says nothing.

    tokenizer: captions -> int64 [B, L].
    """

    needs_image = False

    def __init__(self, tokenizer: Callable[[Sequence[str]], Tensor]) -> None:
        self.tokenizer = tokenizer

    def read(self, sample: Parts) -> Tensor:
        """Tokens int64 [L]. Raises BadSample "no_caption"."""
        if not sample.caption:
            raise BadSample("no_caption")
        return self.parse(sample.caption)

    def nothing(self) -> Tensor:
        """Tokens int64 [L] of the empty caption."""
        return self.parse("")

    def parse(self, value: str) -> Tensor:
        """Tokens int64 [L] of a prompt."""
        return self.tokenizer([str(value)])[0]
