"""CLIP's text encoder as transformers builds it: Stable Diffusion v1's conditioner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from models.conditioners import Conditioner

if TYPE_CHECKING:
    from transformers import CLIPTextModel

Layer = Literal["last", "penultimate"]


def clip_text_encoder(
    width: int, depth: int, heads: int, length: int = 77, vocabulary_size: int = 49408, activation: str = "quick_gelu"
) -> CLIPTextModel:
    """transformers' CLIP text encoder with random weights; ViT-L/14's is 768 wide, 12 blocks deep, with 12 heads."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=vocabulary_size,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        max_position_embeddings=length,
        hidden_act=activation,
        projection_dim=width,
    )
    return CLIPTextModel(config)


class ClipText(Conditioner):
    """Hidden states of a CLIP text encoder, normalised by its last layer (Radford et al. 2021, Sec. 2.4).

    Frozen: it belongs outside the module that is trained. encoder: see clip_text_encoder. layer: whose output is
    taken, "last" in Stable Diffusion v1.
    """

    part = "context"

    def __init__(self, encoder: CLIPTextModel, layer: Layer = "last") -> None:
        super().__init__()
        self.encoder = encoder
        self.layer = layer
        self.width: int = encoder.config.hidden_size
        self.length: int = encoder.config.max_position_embeddings

    def forward(self, tokens: Tensor) -> Tensor:
        """Context float [B, L, width] of tokens int64 [B, L]; L at most `length`."""
        if self.layer == "last":
            return self.encoder(tokens).last_hidden_state
        states = self.encoder(tokens, output_hidden_states=True).hidden_states
        return self.encoder.final_layer_norm(states[-2])

    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Takes the text encoder out of a whole CLIP, of a text encoder alone, or of Stable Diffusion v1."""
        prefixes = ("cond_stage_model.transformer.text_model.", "text_model.", "")
        prefix = next(p for p in prefixes if f"{p}final_layer_norm.weight" in state or not p)
        own = self.state_dict()
        names = {name: f"encoder.{name.removeprefix(prefix)}" for name in state if name.startswith(prefix)}
        return {ours: state[theirs] for theirs, ours in names.items() if prefix == "" or ours in own}
