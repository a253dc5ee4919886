"""Laws of the assembled model and of the frozen first stage."""

import pytest
import torch

from models.autoencoder import AutoencoderKL
from models.conditioners import Condition, Conditioners
from models.conditioners.class_label import ClassLabel
from models.conditioners.class_token import ClassToken
from models.conditioners.image import Image
from models.conditioners.text_transformer import TextTransformer
from models.latent_diffusion import FirstStage, LatentDiffusion
from models.unet import UNet


def make_unet(context_width: int | None) -> UNet:
    torch.manual_seed(0)
    unet = UNet(4, 4, 16, (1, 3), 1, (2,), heads=2, context_width=context_width)
    for p in unet.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return unet


@pytest.fixture()
def first_stage() -> FirstStage:
    torch.manual_seed(0)
    return FirstStage(AutoencoderKL(16, (1, 3), 1, 4, patch_size=2), scale=0.5)


def condition_of(model: LatentDiffusion, tokens: torch.Tensor) -> torch.Tensor:
    context = model.condition({"caption": tokens}).context
    assert context is not None
    return context


def test_the_unet_sees_the_conditioned_tokens_and_both_take_gradients() -> None:
    model = LatentDiffusion(make_unet(12), {"caption": TextTransformer(50, 7, 12, 1, 2, 8)})
    z_t, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    tokens = torch.randint(0, 50, (2, 7))
    eps = model(z_t, t, {"caption": tokens})
    torch.testing.assert_close(eps, model.unet(z_t, t, condition_of(model, tokens)))
    eps.square().sum().backward()
    # Rounding alone gives gradients of 1e-6 to what has no effect.
    assert [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-5] == []


@torch.no_grad()
def test_remembering_reads_each_context_once_and_changes_nothing() -> None:
    model = LatentDiffusion(make_unet(12), {})
    read: list[torch.Tensor] = []
    for name, layer in model.named_modules():
        if name.endswith("cross_attention.key_value"):
            layer.register_forward_hook(lambda layer, inputs, output: read.append(inputs[0]))
    layers = sum(name.endswith("cross_attention") for name, _ in model.named_modules())
    network = model.remembering()
    for condition in (Condition(context=torch.randn(2, 7, 12)), Condition(context=torch.randn(2, 5, 12))):
        for t in (torch.tensor([3, 700]), torch.tensor([2, 699])):
            z_t = torch.randn(2, 4, 8, 8)
            found = network(z_t, t, condition)
            assert len(read) == layers and all(context is condition.context for context in read)
            before = read.copy()
            assert torch.equal(found, model.denoise(z_t, t, condition))
            read[:] = before
        read.clear()


def test_remembering_lets_gradients_through_to_the_weights() -> None:
    model = LatentDiffusion(make_unet(12), {})
    network, condition = model.remembering(), Condition(context=torch.randn(2, 7, 12))
    network(torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), condition).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_unconditional_model_takes_no_inputs() -> None:
    model = LatentDiffusion(make_unet(None), {})
    assert model.condition({}) == Condition()
    assert model(torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), {}).shape == (2, 4, 8, 8)


def test_what_frozen_conditioners_give_is_attended_to_like_what_trained_ones_do() -> None:
    transformer = TextTransformer(50, 7, 12, 1, 2, 8)
    trained, frozen = LatentDiffusion(make_unet(12), {"caption": transformer}), LatentDiffusion(make_unet(12), {})
    z_t, t, tokens = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randint(0, 50, (2, 7))
    given = Conditioners({"caption": transformer})({"caption": tokens})
    assert torch.equal(trained(z_t, t, {"caption": tokens}), frozen(z_t, t, {}, given))


def test_several_conditioners_at_once() -> None:
    unet = UNet(4 + 3, 4, 16, (1, 3), 1, (2,), heads=2, context_width=12, classes=10)
    conditioners = {
        "caption": TextTransformer(50, 7, 12, 1, 2, 8),
        "token": ClassToken(10, 12),
        "label": ClassLabel(),
        "small": Image(),
    }
    model = LatentDiffusion(unet, conditioners)
    inputs = {
        "caption": torch.randint(0, 50, (2, 7)),
        "token": torch.tensor([1, 2]),
        "label": torch.tensor([3, 4]),
        "small": torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8),
    }
    condition = model.condition(inputs)
    assert condition.context is not None and condition.context.shape == (2, 8, 12)
    assert condition.channels is not None and condition.channels.shape == (2, 3, 8, 8)
    assert torch.equal(condition.labels, torch.tensor([3, 4]))  # type: ignore[arg-type]
    for p in unet.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    z_t, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    whole = model(z_t, t, inputs)
    for name, values in inputs.items():  # every one of them matters
        assert not torch.allclose(whole, model(z_t, t, {**inputs, name: values.flip(0)}), atol=1e-4), name


def test_bytes_and_floats_give_one_latent(first_stage: FirstStage) -> None:
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    noise = torch.randn(2, *first_stage.latent_shape(16, 16))
    z = first_stage.encode(images, noise)
    torch.testing.assert_close(z, first_stage.encode(images.float() / 127.5 - 1, noise))


def test_latents_are_scaled_posterior_samples_and_decoding_undoes_the_scale(first_stage: FirstStage) -> None:
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    noise = torch.randn(2, 4, 4, 4)
    z = first_stage.encode(images, noise)
    unscaled = first_stage.autoencoder.encode(images).sample(noise)
    torch.testing.assert_close(z, 0.5 * unscaled)
    decoded = first_stage.autoencoder.decode(unscaled).clamp(-1, 1)
    torch.testing.assert_close(first_stage.decode(z), decoded, rtol=0, atol=1e-5)


def test_decoded_images_stay_in_range(first_stage: FirstStage) -> None:
    images = first_stage.decode(1e3 * torch.randn(1, 4, 4, 4))
    assert images.amin() >= -1 and images.amax() <= 1


def test_the_first_stage_is_frozen_in_every_way(first_stage: FirstStage) -> None:
    torch.nn.ModuleList([first_stage]).train()
    assert not any(module.training for module in first_stage.modules())
    assert not any(p.requires_grad for p in first_stage.parameters())
    z = first_stage.encode(torch.zeros(1, 3, 16, 16, requires_grad=True), torch.zeros(1, 4, 4, 4))
    assert not z.requires_grad
    assert first_stage.state_dict()["scale"].item() == 0.5


def test_bad_shapes_and_scales_are_named(first_stage: FirstStage) -> None:
    with pytest.raises(ValueError, match=r"\[2, 4, 8, 8\].*\[2, 4, 4, 4\]"):
        first_stage.encode(torch.zeros(2, 3, 16, 16), torch.zeros(2, 4, 8, 8))
    with pytest.raises(ValueError, match=r"18 x 16.*4"):
        first_stage.latent_shape(18, 16)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="scale="):
            FirstStage(first_stage.autoencoder, scale)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(first_stage: FirstStage, wrong: float) -> None:
    images, z = torch.zeros(2, 3, 16, 16), torch.zeros(2, 4, 4, 4)
    images[1, 0, 3, 3] = z[1, 0, 3, 3] = wrong
    with pytest.raises(ValueError, match="images hold infinite numbers, or none"):
        first_stage.encode(images, torch.zeros_like(z))
    for tile in (None, 4):
        with pytest.raises(ValueError, match="latents hold infinite numbers, or none"):
            first_stage.decode(z, tile)
