"""A published checkpoint computes here what it computed there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from models.autoencoder import AutoencoderKL, AutoencoderVQ
from models.conditioners import Conditioner
from models.conditioners.class_token import ClassToken
from models.conditioners.clip_text import ClipText, clip_text_encoder
from models.conditioners.image import Image
from models.conditioners.open_clip_text import OpenClipText, open_clip_text_encoder
from models.conditioners.spatial import SpatialRescaler
from models.conditioners.text_transformer import TextTransformer
from models.interop import compvis
from models.unet import UNet


@pytest.mark.parametrize("name", ["unet_text_small", "unet_class_small", "unet_uncond_small", "unet_inpaint_small"])
def test_unet_computes_what_the_published_one_does(golden: Any, name: str) -> None:
    data = golden.tensors(name)
    unet = compvis.unet(*golden.model(name)).eval()
    with torch.no_grad():
        golden.agree(unet(data["x"], data["t"], data.get("context")), data["y"])


def test_unet_computes_the_same_in_channels_last_order(golden: Any) -> None:
    data = golden.tensors("unet_text_small")
    unet = compvis.unet(*golden.model("unet_text_small")).eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        golden.agree(unet(data["x"], data["t"], data["context"]), data["y"])


def test_first_stage_computes_what_the_published_one_does(golden: Any) -> None:
    data = golden.tensors("autoencoder_kl_small")
    autoencoder = compvis.first_stage(*golden.model("autoencoder_kl_small")).eval()
    with torch.no_grad():
        posterior = autoencoder.encode(data["x"])
        mean, log_variance = data["moments"].chunk(2, dim=1)
        golden.agree(posterior.mean, mean)
        golden.agree(posterior.mode(), data["mode"])
        golden.agree(posterior.log_variance, log_variance)
        torch.testing.assert_close(posterior.kl(), data["kl"], rtol=1e-5, atol=1e-4)
        golden.agree(autoencoder.decode(posterior.mode()), data["reconstruction"])


def test_vq_first_stage_computes_what_the_published_one_does(golden: Any) -> None:
    data = golden.tensors("autoencoder_vq_small")
    autoencoder = compvis.first_stage(*golden.model("autoencoder_vq_small")).eval()
    assert isinstance(autoencoder, AutoencoderVQ)
    autoencoder.codebook.published_loss = True
    with torch.no_grad():
        z = autoencoder.encode(data["x"])
        golden.agree(z, data["prequant"])
        quantised = autoencoder.quantise(z)
        golden.agree(quantised.latents, data["quantized"])
        assert torch.equal(quantised.indices.flatten(), data["indices"])
        torch.testing.assert_close(quantised.loss, data["codebook_loss"], rtol=1e-5, atol=0.0)
        golden.agree(autoencoder.decode(z), data["reconstruction"])
        golden.agree(autoencoder.decode(quantised.latents), data["reconstruction"])


def test_text_transformer_computes_what_the_published_one_does(golden: Any) -> None:
    data = golden.tensors("text_transformer_small")
    transformer = compvis.text_transformer(*golden.model("text_transformer_small")).eval()
    with torch.no_grad():
        golden.agree(transformer(data["tokens"]), data["embeddings"])


def meta_weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def shapes(state_dict: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in state_dict.items()}


def test_the_released_model_fits_name_by_name(golden: Any) -> None:
    released = golden.released
    parts = [(compvis.UNET, "unet"), (compvis.FIRST_STAGE, "first_stage"), ("cond_stage_model.", "conditioner")]
    checkpoint = {
        prefix + name: tensor
        for prefix, part in parts
        for name, tensor in meta_weights(released[part]["state_dict"]).items()
    }
    unet = compvis.unet(released["unet"]["config"], compvis.below(compvis.UNET, checkpoint))
    first_stage = compvis.first_stage(released["first_stage"]["config"], compvis.below(compvis.FIRST_STAGE, checkpoint))
    text = compvis.below(compvis.TEXT_TRANSFORMER, checkpoint)
    transformer = compvis.text_transformer(released["conditioner"]["config"], text)
    head = sum(tensor.numel() for tensor in compvis.unused(text).values())

    assert count(unet) == 872_300_484
    assert count(transformer) == 542_895_360
    assert count(transformer) + head == 581_994_042
    assert count(unet) + count(transformer) + head == 1_454_294_526
    assert count(first_stage) == 83_653_863

    back = {compvis.UNET + name: v for name, v in compvis.state_dict(unet).items()}
    back |= {compvis.FIRST_STAGE + name: v for name, v in compvis.state_dict(first_stage).items()}
    back |= {
        compvis.TEXT_TRANSFORMER + name: v
        for name, v in (compvis.state_dict(transformer) | compvis.unused(text)).items()
    }
    assert shapes(back) == shapes(checkpoint)


@pytest.mark.parametrize(
    "name",
    ["kl-f4", "kl-f8", "kl-f16", "kl-f32", "vq-f4", "vq-f4-noattn", "vq-f8", "vq-f8-n256", "vq-f16"],
)
def test_released_first_stages_fit_name_by_name(golden: Any, name: str) -> None:
    released = golden.released_first_stages[f"first-stage-{name}"]
    autoencoder = compvis.first_stage(released["config"], meta_weights(released["state_dict"]))
    assert count(autoencoder) == released["params"]
    assert autoencoder.downsampling == int(name.split("-")[1].removeprefix("f"))
    assert shapes(compvis.state_dict(autoencoder)) == released["state_dict"]


@pytest.mark.parametrize(
    "name",
    [
        "class-conditional-imagenet",
        "layout2img-openimages",
        "semantic-synthesis",
        "super-resolution-bsr",
        "inpainting-big",
        "celebahq",
        "ffhq",
        "lsun-bedrooms",
        "lsun-churches",
    ],
)
def test_released_unets_fit_name_by_name(golden: Any, name: str) -> None:
    released = golden.released_unets[name]["unet"]
    unet = compvis.unet(released["config"], meta_weights(released["state_dict"]))
    assert count(unet) == released["params"]
    assert shapes(compvis.state_dict(unet)) == released["state_dict"]


def test_the_released_layout_transformer_fits_name_by_name(golden: Any) -> None:
    released = golden.released_unets["layout2img-openimages"]["conditioner"]
    published = compvis.below("transformer.", meta_weights(released["state_dict"]))
    transformer = compvis.text_transformer(released["config"], published)
    back = compvis.state_dict(transformer) | compvis.unused(published)
    assert sum(tensor.numel() for tensor in back.values()) == released["params"]
    assert shapes(back) == shapes(published)


CLIP = "transformer.text_model."
CONDITIONERS: dict[str, tuple[Callable[[], Conditioner], dict[str, list[int]]]] = {
    "class": (lambda: ClassToken(1001, 512), {"embedding.weight": [1001, 512]}),
    "semantic map": (lambda: SpatialRescaler(182, 3, 2), {"channel_mapper.weight": [3, 182, 1, 1]}),
    "image": (Image, {}),
    "layout": (
        lambda: TextTransformer(50, 7, 16, 1, 2),
        {"transformer.token_emb.weight": [50, 16], "transformer.attn_layers.layers.1.1.net.2.weight": [16, 64]},
    ),
    "clip": (
        lambda: ClipText(clip_text_encoder(16, 2, 2, vocabulary_size=50)),
        {f"{CLIP}embeddings.token_embedding.weight": [50, 16], f"{CLIP}encoder.layers.1.mlp.fc2.weight": [16, 64]},
    ),
}


@pytest.mark.parametrize("name", CONDITIONERS)
def test_conditioners_go_both_ways_under_published_names(name: str) -> None:
    build, published = CONDITIONERS[name]
    torch.manual_seed(0)
    ours, again = build(), build()
    weights = compvis.conditioner_state_dict(ours)
    assert published.items() <= shapes(weights).items()
    unused = {f"{CLIP}embeddings.position_ids": torch.arange(77)[None], "transformer.to_logits.bias": torch.zeros(50)}
    compvis.fill_conditioner(again, weights | unused)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in ours.state_dict().items())
    with pytest.raises(ValueError, match="surplus"):
        compvis.fill_conditioner(again, {**weights, "surplus.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="OpenClipText: no published model"):
        compvis.conditioner_state_dict(OpenClipText(open_clip_text_encoder(16, 2, 2)))


IMPORTERS = {
    "unet_text_small": compvis.unet,
    "unet_class_small": compvis.unet,
    "unet_uncond_small": compvis.unet,
    "unet_inpaint_small": compvis.unet,
    "autoencoder_kl_small": compvis.first_stage,
    "autoencoder_vq_small": compvis.first_stage,
    "text_transformer_small": compvis.text_transformer,
}


@pytest.mark.parametrize("name", IMPORTERS)
def test_what_is_imported_is_exported_bit_for_bit(golden: Any, name: str) -> None:
    config, published = golden.model(name)
    model = IMPORTERS[name](config, published)
    exported = compvis.state_dict(model) | compvis.unused(published)
    assert exported.keys() == published.keys()
    for entry, weights in published.items():
        assert torch.equal(exported[entry], weights), entry
    again = IMPORTERS[name](config, exported)
    for (entry, weights), (_, first) in zip(again.state_dict().items(), model.state_dict().items(), strict=True):
        assert torch.equal(weights, first), entry


def test_what_the_format_has_no_place_for_is_not_exported() -> None:
    with pytest.raises(ValueError, match="patch_size=2"):
        compvis.state_dict(AutoencoderKL(32, [1], 1, 4, patch_size=2))
    unet = UNet(4, 4, 32, [1], 1, [1], heads=2)
    unet.extra = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"extra\.bias.*extra\.weight"):
        compvis.state_dict(unet)


def test_training_parts_of_a_first_stage_are_left_out(golden: Any) -> None:
    config, weights = golden.model("autoencoder_kl_small")
    weights["loss.logvar"] = torch.zeros(())
    compvis.first_stage(config, weights)


def test_a_class_embedding_goes_both_ways(golden: Any) -> None:
    config, weights = golden.model("unet_text_small")
    embedding = torch.randn(10, weights["time_embed.2.weight"].shape[0])
    unet = compvis.unet({**config, "num_classes": 10}, {**weights, "label_emb.weight": embedding})
    assert torch.equal(unet.time_embedding.classes.weight, embedding)  # type: ignore[union-attr]
    back = compvis.state_dict(unet)
    assert back.keys() == weights.keys() | {"label_emb.weight"}
    assert torch.equal(back["label_emb.weight"], embedding)


def test_missing_and_surplus_entries_are_named(golden: Any) -> None:
    config, weights = golden.model("text_transformer_small")
    incomplete = {name: w for name, w in weights.items() if name != "norm.bias"}
    with pytest.raises(ValueError, match=r"lacks.*norm\.bias"):
        compvis.text_transformer(config, incomplete)
    with pytest.raises(ValueError, match=r"too many.*surplus"):
        compvis.text_transformer(config, {**weights, "surplus": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"lacks.*norm\.bias.*too many.*surplus"):
        compvis.text_transformer(config, {**incomplete, "surplus": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"none of.*check the prefix"):
        compvis.text_transformer(config, {f"transformer.{name}": w for name, w in weights.items()})


def test_another_shape_is_named(golden: Any) -> None:
    config, weights = golden.model("text_transformer_small")
    with pytest.raises(ValueError, match=r"norm\.bias has shape \[3\].*\[64\]"):
        compvis.text_transformer(config, {**weights, "norm.bias": torch.zeros(3)})


def test_unknown_and_unsupported_settings_are_named(golden: Any) -> None:
    config, weights = golden.model("unet_text_small")
    with pytest.raises(ValueError, match="use_new_attention_order"):
        compvis.unet({**config, "use_new_attention_order": True}, weights)
    with pytest.raises(ValueError, match="model_channels"):
        compvis.unet({k: v for k, v in config.items() if k != "model_channels"}, weights)
    config, weights = golden.model("autoencoder_kl_small")
    with pytest.raises(ValueError, match="n_embed=64"):
        compvis.first_stage({**config, "n_embed": 64}, weights)
    with pytest.raises(ValueError, match="attn_type=linear"):
        compvis.first_stage({**config, "ddconfig": {**config["ddconfig"], "attn_type": "linear"}}, weights)
