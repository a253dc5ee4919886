"""What stands in the text encoder's place in diffusers' pipelines, and the same conditioners of ours.

TextTransformer is LDMBertModel, ClipText is transformers' CLIPTextModel. A ClassToken is transformers' OpenAIGPTModel
without blocks, which gives its embedding as it is.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from models.conditioners.class_token import ClassToken
from models.conditioners.clip_text import ClipText, clip_text_encoder
from models.conditioners.text_transformer import TextBlock, TextTransformer
from models.interop.diffusers_names import text_names
from models.interop.diffusers_settings import Config
from models.interop.layers import Layer, exported, fill, same_names

HEAD = "to_logits."
"""Of an LDMBertModel, which never uses it."""
CLIP = "text_model"
"""Below which a CLIPTextModel's names lie in files, whatever the library's version calls them in memory."""
CLASS_NAMES = (Layer("embedding", ("tokens_embed",)),)
CLASS_POSITIONS = "positions_embed.weight"
TOKENS = 77
"""As many as the pipelines give an encoder."""

BERT_DEFAULTS: Config = {
    "vocab_size": 30_522,
    "max_position_embeddings": 77,
    "d_model": 1280,
    "encoder_ffn_dim": 5120,
    "encoder_layers": 32,
    "encoder_attention_heads": 8,
    "head_dim": 64,
    "activation_function": "gelu",
    "scale_embedding": False,
}
"""What LDMBertConfig takes where a folder doesn't say."""
CLIP_DEFAULTS: Config = {
    "vocab_size": 49_408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""The same of CLIPTextConfig."""
CLASS_DEFAULTS: Config = {"n_layer": 12, "n_positions": 512, "vocab_size": 40_478, "n_embd": 768}
"""The same of OpenAIGPTConfig."""


def text_config(model: TextTransformer) -> Config:
    """Settings of the LDMBertModel that computes what this transformer does."""
    block, width = model.blocks[0], model.tokens.embedding_dim
    assert isinstance(block, TextBlock)
    return {
        "architectures": ["LDMBertModel"],
        "model_type": "ldmbert",
        "vocab_size": model.tokens.num_embeddings,
        "max_position_embeddings": model.length,
        "d_model": width,
        "encoder_ffn_dim": 4 * width,
        "encoder_layers": len(model.blocks),
        "encoder_attention_heads": block.attention.heads,
        "head_dim": block.attention.query.out_features // block.attention.heads,
        "activation_function": "gelu",
        "scale_embedding": False,
        "dropout": 0.0,
        "pad_token_id": 0,
    }


def text_transformer(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> TextTransformer:
    """The conditioner of an LDMBertModel, without its head, which is never used; see `unused`."""
    settings = {**BERT_DEFAULTS, **config}
    with torch.device("meta"):  # no time or memory for weights that are replaced at once
        model = TextTransformer(
            vocabulary_size=settings["vocab_size"],
            length=settings["max_position_embeddings"],
            width=settings["d_model"],
            depth=settings["encoder_layers"],
            heads=settings["encoder_attention_heads"],
            head_width=settings["head_dim"],
        )
    _check_settings(settings, text_config(model), BERT_DEFAULTS)
    fill(model, text_names(model), {name: v for name, v in state_dict.items() if not name.startswith(HEAD)})
    return model


def text_weights(model: TextTransformer) -> dict[str, Tensor]:
    """State dict of the LDMBertModel, with zeros in its head."""
    tokens = model.tokens.weight
    head = {f"{HEAD}weight": torch.zeros_like(tokens), f"{HEAD}bias": tokens.new_zeros(len(tokens))}
    return exported(model, text_names(model)) | head


def clip_config(model: ClipText) -> Config:
    """Settings of the CLIPTextModel whose last hidden state is this conditioner's context.

    Raises ValueError for another layer's.
    """
    if model.layer != "last":
        raise ValueError(
            f"layer={model.layer}: diffusers' pipelines take the last layer's output; only that can be told"
        )
    ours = model.encoder.config.to_dict()
    told = {key: ours[key] for key in (*CLIP_DEFAULTS, "projection_dim", "attention_dropout", "bos_token_id")}
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        **told,
        "eos_token_id": ours["eos_token_id"],
        "pad_token_id": ours["pad_token_id"],
    }


def clip_text(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> ClipText:
    """The conditioner of a CLIPTextModel."""
    settings = {**CLIP_DEFAULTS, **config}
    with torch.device("meta"):
        model = ClipText(
            clip_text_encoder(
                width=settings["hidden_size"],
                depth=settings["num_hidden_layers"],
                heads=settings["num_attention_heads"],
                length=settings["max_position_embeddings"],
                vocabulary_size=settings["vocab_size"],
                activation=settings["hidden_act"],
            )
        )
    _check_settings(settings, clip_config(model), CLIP_DEFAULTS)
    weights = {f"{CLIP}.{name.removeprefix(f'{CLIP}.')}": v for name, v in state_dict.items()}
    weights.pop(f"{CLIP}.embeddings.position_ids", None)  # the numbers 0, 1, 2 ..., in older files
    fill(model, same_names(model.encoder, "encoder", CLIP), weights)
    # Numbers, not weights: no file needs them, and those from the meta device have no values.
    numbers = torch.arange(model.length).expand(1, -1)
    model.encoder.embeddings.register_buffer("position_ids", numbers, persistent=False)
    return model


def clip_weights(model: ClipText) -> dict[str, Tensor]:
    """State dict of the CLIPTextModel as files have it."""
    return exported(model, same_names(model.encoder, "encoder", CLIP))


def class_config(model: ClassToken) -> Config:
    """Settings of the OpenAIGPTModel whose output is, for a class said 77 times, its embedding 77 times.

    Attending to equal tokens is attending to one of them.
    """
    return {
        "architectures": ["OpenAIGPTModel"],
        "model_type": "openai-gpt",
        "vocab_size": model.embedding.num_embeddings,
        "n_positions": TOKENS,
        "n_embd": model.width,
        "n_layer": 0,
        "n_head": 1,
        "embd_pdrop": 0.0,
    }


def class_token(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> ClassToken:
    """The conditioner of such an OpenAIGPTModel. Raises ValueError when positions add to the classes."""
    settings = {**CLASS_DEFAULTS, **config}
    with torch.device("meta"):
        model = ClassToken(settings["vocab_size"], settings["n_embd"])
    _check_settings(settings, class_config(model), CLASS_DEFAULTS)
    weights = dict(state_dict)
    positions = weights.pop(CLASS_POSITIONS, None)
    if positions is None or positions.any():
        found = "absent" if positions is None else "not zero"
        raise ValueError(f"{CLASS_POSITIONS} is {found}: only classes to which no position is added can be imported")
    fill(model, CLASS_NAMES, weights)
    return model


def class_weights(model: ClassToken) -> dict[str, Tensor]:
    """State dict of that OpenAIGPTModel."""
    positions = model.embedding.weight.new_zeros(TOKENS, model.width)
    return {**exported(model, CLASS_NAMES), CLASS_POSITIONS: positions}


def _check_settings(given: Config, ours: Config, keys: Iterable[str]) -> None:
    wrong = {key: given[key] for key in keys if given[key] != ours[key]}
    if wrong:
        raise ValueError(f"settings that can't be imported: {wrong}; only { ({key: ours[key] for key in wrong}) } can")
