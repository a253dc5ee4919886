"""Conditioners of ours compute what they do as text encoders in diffusers' pipelines, and are read back bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, OpenAIGPTModel

from models.conditioners import Conditioner
from models.conditioners.class_token import ClassToken
from models.conditioners.clip_text import ClipText, clip_text_encoder
from models.conditioners.image import Image
from models.conditioners.text_transformer import TextTransformer
from models.interop import diffusers

CLASSES = 60


def drawn(model: nn.Module) -> Any:
    """The model with every weight drawn."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def clip() -> ClipText:
    return drawn(ClipText(clip_text_encoder(24, 2, 3, vocabulary_size=CLASSES)))


def as_bert(config: dict[str, Any], weights: dict[str, Tensor], folder: Path) -> nn.Module:
    model = LDMBertModel(LDMBertConfig(**config))
    model.load_state_dict(weights, strict=True)
    return model


def from_folder(kind: Any) -> Callable[[dict[str, Any], dict[str, Tensor], Path], nn.Module]:
    """The library's model from a folder, in which nothing is missing or too much."""

    def opened(config: dict[str, Any], weights: dict[str, Tensor], folder: Path) -> nn.Module:
        (folder / "config.json").write_text(json.dumps(config))
        weights = {name: value.contiguous() for name, value in weights.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        model, found = kind.from_pretrained(folder, output_loading_info=True)
        assert not any(found[fault] for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        return model

    return opened


KINDS: dict[str, tuple[Any, Any, Any, Any]] = {
    "text transformer": (
        lambda: drawn(TextTransformer(CLASSES, 77, 24, 2, 3, 8)),
        diffusers.text_config,
        diffusers.text_transformer,
        as_bert,
    ),
    "clip": (clip, diffusers.clip_config, diffusers.clip_text, from_folder(CLIPTextModel)),
    "class": (
        lambda: drawn(ClassToken(CLASSES, 24)),
        diffusers.class_config,
        diffusers.class_token,
        from_folder(OpenAIGPTModel),
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_library_s_encoder_gives_the_same_context(name: str, tmp_path: Path) -> None:
    build, config, _, opened = KINDS[name]
    ours = build()
    model = opened(json.loads(json.dumps(config(ours))), diffusers.state_dict(ours), tmp_path).eval()
    tokens = torch.tensor([[7] * 77, [3] * 77]) if name == "class" else torch.arange(77)[None] % CLASSES
    with torch.no_grad():
        context = ours(tokens[:, 0]) if name == "class" else ours(tokens)
        assert context.std() > 0.1
        torch.testing.assert_close(context.expand(-1, 77, -1), model(tokens)[0], rtol=0.0, atol=2e-5)


@pytest.mark.parametrize("name", KINDS)
def test_it_is_read_back_bit_for_bit(name: str) -> None:
    build, config, read, _ = KINDS[name]
    ours = build()
    weights = diffusers.state_dict(ours)
    again = read(json.loads(json.dumps(config(ours))), weights)
    assert ours.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in ours.state_dict().items())
    back = diffusers.state_dict(again)
    assert back.keys() == weights.keys() and all(torch.equal(v, weights[k]) for k, v in back.items())
    tokens = torch.zeros(1, dtype=torch.int64) if name == "class" else torch.zeros(1, 7, dtype=torch.int64)
    with torch.no_grad():
        assert torch.equal(ours(tokens), again(tokens))


@pytest.mark.parametrize("name", KINDS)
def test_missing_and_surplus_entries_are_named(name: str) -> None:
    build, config, read, _ = KINDS[name]
    ours = build()
    weights = diffusers.state_dict(ours)
    gone = next(iter(weights))
    kept = {key: value for key, value in weights.items() if key != gone}
    with pytest.raises(ValueError, match=f"(?s){gone}|none of"):
        read(config(ours), kept)
    with pytest.raises(ValueError, match="surplus"):
        read(config(ours), {**weights, "surplus.weight": torch.zeros(1)})


def test_the_head_that_is_never_used_is_carried_beside_the_model() -> None:
    ours = drawn(TextTransformer(CLASSES, 77, 24, 2, 3, 8))
    theirs = LDMBertModel(LDMBertConfig(**diffusers.text_config(ours))).state_dict()
    whole = diffusers.state_dict(ours) | diffusers.unused(theirs)
    again = diffusers.text_transformer(diffusers.text_config(ours), whole)
    back = diffusers.state_dict(again) | diffusers.unused(whole)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(v, whole[name]) for name, v in back.items())


def test_an_older_clip_s_position_numbers_are_no_surplus() -> None:
    ours = clip()
    weights = {**diffusers.state_dict(ours), "text_model.embeddings.position_ids": torch.arange(77)[None]}
    diffusers.clip_text(diffusers.clip_config(ours), weights)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: diffusers.clip_config(ClipText(clip().encoder, layer="penultimate")), "layer=penultimate"),
        (
            lambda: diffusers.clip_text(diffusers.clip_config(clip()) | {"intermediate_size": 7}, {}),
            "intermediate_size",
        ),
        (lambda: diffusers.class_token(diffusers.class_config(ClassToken(5, 8)) | {"n_layer": 2}, {}), "n_layer"),
        (
            lambda: diffusers.text_transformer(
                diffusers.text_config(TextTransformer(5, 7, 8, 1, 1)) | {"activation_function": "relu"}, {}
            ),
            "'activation_function': 'relu'",
        ),
        (lambda: diffusers.state_dict(Image()), "Image: diffusers has no such model"),
    ],
)
def test_what_would_compute_something_else_is_named(attempt: Callable[[], Conditioner], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attempt()


def test_a_class_with_a_position_is_refused() -> None:
    ours = ClassToken(5, 8)
    weights = diffusers.state_dict(ours)
    weights["positions_embed.weight"] = torch.ones(77, 8)
    with pytest.raises(ValueError, match="not zero"):
        diffusers.class_token(diffusers.class_config(ours), weights)
