"""CLIP's text encoders give what their libraries give, and take their weights out of published files."""

import open_clip
import torch
import transformers

from models.conditioners.clip_text import ClipText, clip_text_encoder
from models.conditioners.open_clip_text import OpenClipText, open_clip_text_encoder

TOKENS = torch.randint(0, 60, (2, 7), generator=torch.Generator().manual_seed(0))


def small() -> ClipText:
    torch.manual_seed(0)
    return ClipText(clip_text_encoder(width=32, depth=3, heads=2, length=7, vocabulary_size=60).eval())


def test_the_last_layer_is_the_library_s_output() -> None:
    conditioner = small()
    with torch.no_grad():
        expected = conditioner.encoder(TOKENS).last_hidden_state
        assert torch.equal(conditioner(TOKENS), expected)


def test_the_penultimate_layer_is_what_an_encoder_without_the_last_block_gives() -> None:
    conditioner = small()
    with torch.no_grad():
        given = ClipText(conditioner.encoder, layer="penultimate")(TOKENS)
        del conditioner.encoder.encoder.layers[-1]
        torch.testing.assert_close(given, conditioner(TOKENS))


def test_weights_come_out_of_every_kind_of_file() -> None:
    conditioner = small()
    own = conditioner.state_dict()
    bare = {name.removeprefix("encoder."): tensor for name, tensor in own.items()}
    whole = {f"text_model.{name}": tensor for name, tensor in bare.items()}
    whole |= {"text_model.embeddings.position_ids": torch.arange(7), "vision_model.x": torch.zeros(1)}
    whole |= {"logit_scale": torch.zeros(())}
    sd_v1 = {f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in bare.items()}
    sd_v1 |= {"model.diffusion_model.out.2.bias": torch.zeros(4)}
    for file in (bare, whole, sd_v1):
        found = conditioner.published(file)
        assert found.keys() == own.keys()
        assert all(torch.equal(found[name], own[name]) for name in own)


def test_a_saved_clip_of_transformers_is_read() -> None:
    """The names are the library's own: a whole CLIP, its text part."""
    text = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
    text |= {"vocab_size": 60, "max_position_embeddings": 7}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4}
    clip = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision)).eval()
    conditioner = small()
    conditioner.load_state_dict(conditioner.published(dict(clip.state_dict())))
    with torch.no_grad():
        torch.testing.assert_close(conditioner(TOKENS), clip.text_model(TOKENS).last_hidden_state)


def test_open_clip_s_layers_and_names() -> None:
    torch.manual_seed(0)
    text = open_clip.CLIPTextCfg(context_length=7, vocab_size=60, width=32, heads=2, layers=3)
    vision = open_clip.CLIPVisionCfg(layers=1, width=32, patch_size=4, image_size=8, head_width=16)
    clip = open_clip.CLIP(16, vision, text).eval()
    encoder = open_clip_text_encoder(width=32, depth=3, heads=2, length=7, vocabulary_size=60).eval()
    last, penultimate = OpenClipText(encoder, layer="last"), OpenClipText(encoder)
    state = last.published(dict(clip.state_dict()))
    state.pop("encoder.text_projection")  # to the width of images, which conditioning does not use
    last.load_state_dict(state, strict=False)
    with torch.no_grad():
        x = clip.token_embedding(TOKENS) + clip.positional_embedding
        for block in clip.transformer.resblocks[:-1]:
            x = block(x, attn_mask=clip.attn_mask)
        torch.testing.assert_close(penultimate(TOKENS), clip.ln_final(x))
        x = clip.transformer.resblocks[-1](x, attn_mask=clip.attn_mask)
        torch.testing.assert_close(last(TOKENS), clip.ln_final(x))
