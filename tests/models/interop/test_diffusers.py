"""A model of ours and its export to diffusers compute the same, and what is read back is what was written."""

from __future__ import annotations

import json
from typing import Any

import diffusers as library
import pytest
import torch
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from torch import Tensor, nn

from models.autoencoder import Autoencoder, AutoencoderKL, AutoencoderVQ
from models.interop import compvis, diffusers
from models.latent_diffusion import FirstStage
from models.schedule import linear
from models.unet import UNet

TOLERANCE = 2e-5
"""Absolute, on outputs of about unit size in float32: the order of sums differs."""


def drawn(model: nn.Module) -> Any:
    """The model with every weight drawn, those that begin at zero too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def text_unet(**changes: Any) -> UNet:
    return UNet(**{
        "in_channels": 4, "out_channels": 4, "channels": 32, "channel_multipliers": [1, 2, 2], "residual_blocks": 1,
        "attention_downsamplings": [1, 2], "heads": 4, "context_width": 24, "transformer_depth": 1,
    } | changes)  # fmt: skip


def plain_unet(**changes: Any) -> UNet:
    settings = {"heads": None, "head_channels": 16, "context_width": None}
    return text_unet(**(settings | changes))


UNETS = {
    "heads": lambda: text_unet(residual_blocks=2, transformer_depth=2),
    "head width": lambda: text_unet(heads=None, head_channels=8),
    "scale and shift": lambda: text_unet(scale_shift_norm=True, attention_downsamplings=[4]),
    "narrow": lambda: text_unet(channels=12, channel_multipliers=[1, 2]),
    "unconditional": lambda: plain_unet(residual_blocks=2),
    "unconditional, resized in blocks": lambda: plain_unet(resblock_updown=True, attention_downsamplings=[2]),
    "unconditional, scale and shift": lambda: plain_unet(resblock_updown=True, scale_shift_norm=True),
    "classes": lambda: plain_unet(classes=7),
    "classes and context": lambda: text_unet(classes=7),
}


def strict(model: Any, state_dict: dict[str, Tensor]) -> Any:
    """The library's model with the weights in it: every name must fit."""
    model.load_state_dict(state_dict, strict=True)
    return model.eval()


def written(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration after a file."""
    return json.loads(json.dumps(config))


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return a.state_dict().keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("name", UNETS)
def test_an_exported_unet_computes_the_same(name: str) -> None:
    unet = drawn(UNETS[name]())
    config = written(diffusers.unet_config(unet))
    model = strict(getattr(library, config["_class_name"]).from_config(config), diffusers.state_dict(unet))
    torch.manual_seed(1)
    z_t, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 981])
    context = None if unet.context_width is None else torch.randn(2, 5, unet.context_width)
    labels = None if unet.classes is None else torch.tensor([0, 6])
    given = {} if context is None else {"encoder_hidden_states": context}
    with torch.no_grad():
        theirs = model(z_t, t, class_labels=labels, **given).sample
        torch.testing.assert_close(unet(z_t, t, context, labels), theirs, rtol=0.0, atol=TOLERANCE)


@pytest.mark.parametrize("name", UNETS)
def test_an_exported_unet_is_read_back_bit_for_bit(name: str) -> None:
    unet = drawn(UNETS[name]())
    config = diffusers.unet_config(unet)
    again = diffusers.unet(written(config), diffusers.state_dict(unet))
    assert same_weights(unet, again)
    assert diffusers.unet_config(again) == config
    # as the library's own files say it: everything, and tuples
    model = getattr(library, config["_class_name"]).from_config(config)
    assert same_weights(unet, diffusers.unet(model.config, diffusers.state_dict(unet)))


FIRST_STAGES = {
    "kl": lambda: AutoencoderKL(32, [1, 2], 2, 4),
    "kl with attention": lambda: AutoencoderKL(32, [1, 1, 2], 1, 4, attention_levels=[1]),
    "vq": lambda: AutoencoderVQ(32, [1, 2], 1, 3, 64, z_channels=4),
    "vq without attention": lambda: AutoencoderVQ(12, [1, 2], 1, 3, 64, middle_attention=False),
}


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_an_exported_first_stage_computes_the_same(name: str) -> None:
    autoencoder: Autoencoder = drawn(FIRST_STAGES[name]())
    config = written(diffusers.autoencoder_config(autoencoder, 0.75))
    model = strict(getattr(library, config["_class_name"]).from_config(config), diffusers.state_dict(autoencoder))
    torch.manual_seed(1)
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        if isinstance(autoencoder, AutoencoderKL):
            z, theirs = autoencoder.encode(x).mean, model.encode(x).latent_dist.mean
        else:
            z, theirs = autoencoder.encode(x), model.encode(x).latents
        torch.testing.assert_close(z, theirs, rtol=0.0, atol=TOLERANCE)
        torch.testing.assert_close(autoencoder.decode(z), model.decode(z).sample, rtol=0.0, atol=TOLERANCE)


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_an_exported_first_stage_is_read_back_bit_for_bit(name: str) -> None:
    first_stage = FirstStage(drawn(FIRST_STAGES[name]()), 0.18215)
    config = diffusers.autoencoder_config(first_stage.autoencoder, float(first_stage.scale))
    weights = diffusers.state_dict(first_stage.autoencoder)
    again = diffusers.first_stage(written(config), weights)
    assert type(again.autoencoder) is type(first_stage.autoencoder)
    assert same_weights(first_stage, again)
    model = getattr(library, config["_class_name"]).from_config(config)
    assert same_weights(first_stage, diffusers.first_stage(model.config, weights))


@pytest.mark.parametrize("name", ["unconditional", "unconditional, resized in blocks"])
def test_a_unet_of_an_older_folder_is_read(name: str) -> None:
    """Before diffusers 0.18 the layers of plain attention had other names."""
    unet = drawn(UNETS[name]())
    old = {}
    for key, value in diffusers.state_dict(unet).items():
        for now, then in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            key = key.replace(f".{now}.", f".{then}.")
        old[key] = value
    assert any("proj_attn" in key for key in old)
    assert same_weights(unet, diffusers.unet(diffusers.unet_config(unet), old))


def test_the_schedule_is_read_back_bit_for_bit() -> None:
    schedule = linear(0.00085, 0.012)
    config = written(diffusers.scheduler_config(schedule))
    assert (config["beta_start"], config["beta_end"]) == (0.00085, 0.012)
    again = diffusers.noise_schedule(config)
    assert torch.equal(again.alpha_bar, schedule.alpha_bar)
    theirs = library.DDIMScheduler.from_config(config)
    torch.testing.assert_close(theirs.alphas_cumprod.double(), schedule.alpha_bar, rtol=1e-5, atol=0.0)
    schedule.betas = schedule.betas.flip(0)
    with pytest.raises(ValueError, match="not even in their square roots"):
        diffusers.scheduler_config(schedule)
    with pytest.raises(ValueError, match=r"'beta_schedule': 'linear'.*scaled_linear"):
        diffusers.noise_schedule({**config, "beta_schedule": "linear"})


@pytest.mark.parametrize("name", ["celebahq", "ffhq", "lsun-bedrooms"])
def test_released_unconditional_unets_have_a_place(golden: Any, name: str) -> None:
    released = golden.released_unets[name]["unet"]
    weights = {name: torch.empty(shape, device="meta") for name, shape in released["state_dict"].items()}
    unet = compvis.unet(released["config"], weights)
    config = diffusers.unet_config(unet)
    with torch.device("meta"):
        model = library.UNet2DModel.from_config(config)
    exported = diffusers.state_dict(unet)
    assert {k: v.shape for k, v in exported.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_the_released_text_to_image_model_has_a_place(golden: Any) -> None:
    def meta(part: str) -> dict[str, Tensor]:
        return {k: torch.empty(v, device="meta") for k, v in golden.released[part]["state_dict"].items()}

    unet = compvis.unet(golden.released["unet"]["config"], meta("unet"))
    first_stage = compvis.first_stage(golden.released["first_stage"]["config"], meta("first_stage"))
    text = compvis.text_transformer(
        golden.released["conditioner"]["config"], compvis.below("transformer.", meta("conditioner"))
    )
    with torch.device("meta"):
        models = [
            library.UNet2DConditionModel.from_config(diffusers.unet_config(unet)),
            library.AutoencoderKL.from_config(diffusers.autoencoder_config(first_stage, 0.18215)),
            LDMBertModel(LDMBertConfig(**diffusers.text_config(text))),
        ]
    for ours, theirs in zip((unet, first_stage, text), models, strict=True):
        exported = diffusers.state_dict(ours)
        assert {k: v.shape for k, v in exported.items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: diffusers.unet_config(text_unet(resblock_updown=True)), "resblock_updown=true with a context"),
        (lambda: diffusers.unet_config(text_unet(channel_multipliers=[2, 2])), "begin with 2"),
        (lambda: diffusers.unet_config(text_unet(channels=16, heads=2)), r"\[4, 32\] groups"),
        (lambda: diffusers.unet_config(plain_unet(heads=4, head_channels=None)), r"heads of \[8, 16\] channels"),
        (lambda: diffusers.autoencoder_config(AutoencoderKL(32, [1], 1, 4, patch_size=2), 1.0), "patch_size=2"),
        (lambda: diffusers.autoencoder_config(AutoencoderKL(32, [1], 1, 4, z_channels=8), 1.0), "z_channels=8"),
    ],
)
def test_what_the_library_has_no_model_for_is_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "change",
    [
        {"use_linear_projection": True},
        {"norm_num_groups": 16},
        {"flip_sin_to_cos": False},
        {"class_embed_type": "timestep"},
        {"attention_head_dim": [2, 8, 4]},
        {"up_block_types": ["UpBlock2D", "UpBlock2D", "UpBlock2D"]},
        {"new_setting": 1},
        {"layers_per_block": [1, 2, 1]},
        {"cross_attention_dim": [24, 24, 32]},
    ],
)
def test_settings_that_would_compute_something_else_are_named(change: dict[str, Any]) -> None:
    unet = text_unet(attention_downsamplings=[1, 2, 4], channel_multipliers=[1, 2, 2])
    config = diffusers.unet_config(unet) | change
    with pytest.raises(ValueError, match=next(iter(change))):
        diffusers.unet(config, diffusers.state_dict(unet))


def test_missing_and_surplus_entries_are_named() -> None:
    unet = plain_unet()
    weights = diffusers.state_dict(unet)
    surplus = weights.pop("mid_block.attentions.0.to_k.bias")
    with pytest.raises(ValueError, match=r"lacks.*to_k\.bias.*too many.*surplus"):
        diffusers.unet(diffusers.unet_config(unet), {**weights, "surplus": surplus})
