"""CLIP's text encoder as open_clip builds it: Stable Diffusion v2's conditioner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from models.conditioners import Conditioner
from models.conditioners.clip_text import Layer

if TYPE_CHECKING:
    from open_clip.transformer import TextTransformer


def open_clip_text_encoder(
    width: int, depth: int, heads: int, length: int = 77, vocabulary_size: int = 49408
) -> TextTransformer:
    """open_clip's text encoder with random weights; ViT-H/14's is 1024 wide, 24 blocks deep, with 16 heads."""
    from open_clip.transformer import TextTransformer

    return TextTransformer(
        context_length=length, vocab_size=vocabulary_size, width=width, heads=heads, layers=depth, output_dim=width
    )


class OpenClipText(Conditioner):
    """Hidden states of an open_clip text encoder, normalised by its last layer (Radford et al. 2021, Sec. 2.4).

    Frozen: it belongs outside the module that is trained. encoder: see open_clip_text_encoder. layer: whose output is
    taken, "penultimate" in Stable Diffusion v2.
    """

    part = "context"

    def __init__(self, encoder: TextTransformer, layer: Layer = "penultimate") -> None:
        super().__init__()
        self.encoder = encoder
        self.blocks = 1 if layer == "last" else 2
        self.length: int = encoder.num_pos
        self.width: int = encoder.width

    def forward(self, tokens: Tensor) -> Tensor:
        """Context float [B, length, width] of tokens int64 [B, length]."""
        states = self.encoder.forward_intermediates(
            tokens, indices=self.blocks, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC"
        )
        return states["text_intermediates"][0]

    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Takes the text encoder out of a whole CLIP, or of a text encoder alone."""
        prefix = "text." if "text.ln_final.weight" in state else ""
        own = self.state_dict()
        names = {f"encoder.{name.removeprefix(prefix)}": name for name in state}
        return {ours: state[theirs] for ours, theirs in names.items() if ours in own}
