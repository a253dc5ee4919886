"""The text encoder that is trained jointly with the denoiser (LDM Sec. 4.3.1, App. E.2.1)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.activation_checkpointing import ActivationCheckpointing, numbered
from models.attention import Attention
from models.conditioners import Conditioner


class TextBlock(nn.Module):
    """Self-attention and a GELU feed-forward, each normalised first and added. [B, L, width] -> same."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attention = Attention(width, width, heads, head_width)
        self.norm_2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm_1(x)  # [B, L, width]
        x = x + self.attention(h, h)
        h = F.gelu(self.expand(self.norm_2(x)))  # [B, L, 4 * width]
        return x + self.out(h)


class TextTransformer(Conditioner):
    """tau_theta: tokens to a context for cross-attention (LDM Sec. 3.3, App. E.2.1, Tab. 17).

    Attends in both directions and without a mask, padding included, as the published model does.
    vocabulary_size: tokens. length: the most positions. width: of the output. depth: blocks.
    heads x head_width: inner width of attention, which may differ from width. token_std: deviation of the token
    embedding before training, 0.02 as published. A narrow transformer that trains briefly learns words sooner near 1:
    what a block adds is then small beside the words, and not the other way round. activation_checkpointing: of which
    blocks, True being all (see ActivationCheckpointing), or some such as `blocks.2`.
    """

    part = "context"

    def __init__(
        self,
        vocabulary_size: int,
        length: int,
        width: int,
        depth: int,
        heads: int,
        head_width: int = 64,
        token_std: float = 0.02,
        activation_checkpointing: bool | Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.length = length
        self.width = width
        self.tokens = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(TextBlock(width, heads, head_width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.checkpointing = ActivationCheckpointing(activation_checkpointing, numbered("blocks", self.blocks))
        nn.init.normal_(self.tokens.weight, std=token_std)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Context float [B, L, width] of tokens int64 [B, L]; L at most `length`, else ValueError."""
        if tokens.ndim != 2 or tokens.shape[1] > self.length:
            raise ValueError(
                f"tokens have shape {list(tokens.shape)}: this transformer takes [B, L] with L at most "
                f"{self.length}; truncate when tokenising"
            )
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]  # [B, L, width]
        for i, block in enumerate(self.blocks):
            x = self.checkpointing.run(f"blocks.{i}", block, x)  # [B, L, width]
        return self.norm(x)
