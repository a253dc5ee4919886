"""Laws of the UNet, whatever its configuration."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.attention import ReadOnce
from models.unet import UNet
from models.unet_layers import sinusoidal

BASE: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 3,
    "channels": 16,
    "channel_multipliers": (1, 3),
    "residual_blocks": 1,
    "attention_downsamplings": (2,),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "cross-attention": {"heads": 2, "context_width": 10},
    "two blocks deep": {"head_channels": 8, "context_width": 10, "transformer_depth": 2},
    "pooled context": {"heads": 2, "context_width": 10, "pooled_context": True},
    "self-attention": {"head_channels": 8},
    "attention everywhere": {"heads": 4, "attention_downsamplings": (1, 2)},
    "BigGAN resizing": {"heads": 1, "resblock_updown": True},
    "scale and shift": {"heads": 1, "scale_shift_norm": True},
    "three levels": {"heads": 1, "channel_multipliers": (1, 3, 4), "residual_blocks": 2},
}


def build(**overrides: Any) -> UNet:
    """A UNet without zero-initialised layers, which would hide what lies behind them."""
    torch.manual_seed(0)
    unet = UNet(**{**BASE, **overrides})
    for p in unet.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return unet


def inputs(unet: UNet, batch: int = 2, side: int = 8) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    z_t = torch.randn(batch, 4, side, side, generator=generator)
    t = torch.arange(batch) * 400
    width = unet.context_width
    return z_t, t, None if width is None else torch.randn(batch, 5, width, generator=generator)


@pytest.fixture(params=list(VARIANTS))
def unet(request: pytest.FixtureRequest) -> UNet:
    return build(**VARIANTS[request.param])


def test_gradient_reaches_every_parameter(unet: UNet) -> None:
    unet(*inputs(unet)).square().sum().backward()
    # Rounding alone gives gradients of 1e-6 to what has no effect.
    untouched = [n for n, p in unet.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-3]
    assert untouched == []


def test_samples_do_not_influence_each_other(unet: UNet) -> None:
    unet.eval()
    z_t, t, context = inputs(unet)
    with torch.no_grad():
        both = unet(z_t, t, context)
        second = unet(z_t[1:], t[1:], None if context is None else context[1:])
    torch.testing.assert_close(both[1:], second, rtol=0, atol=1e-5)


def test_output_has_the_input_s_size_at_any_multiple_of_the_stride(unet: UNet) -> None:
    z_t, t, context = inputs(unet)
    wide = torch.cat([z_t, z_t], dim=3)
    assert unet(z_t, t, context).shape == (2, 3, 8, 8)
    assert unet(wide, t, context).shape == (2, 3, 8, 16)


def test_time_and_context_matter() -> None:
    unet = build(heads=2, context_width=10)
    z_t, t, context = inputs(unet)
    assert context is not None
    with torch.no_grad():
        eps = unet(z_t, t, context)
        assert ((unet(z_t, t + 1, context) - eps).abs().amax((1, 2, 3)) > 1e-3).all()
        assert (unet(z_t, t, context.flip(1)) - eps).abs().max() < 1e-5  # attention has no order of its own
        assert (unet(z_t, t, context + 1) - eps).abs().max() > 1e-3


def test_a_pooled_context_acts_through_the_timestep_whatever_its_tokens_order() -> None:
    unet = build(heads=2, context_width=10, pooled_context=True)
    _, t, context = inputs(unet)
    assert context is not None
    with torch.no_grad():
        embedding = unet.time_embedding(t, None, context)
        torch.testing.assert_close(unet.time_embedding(t, None, context.flip(1)), embedding)
        torch.testing.assert_close(unet.time_embedding(t, None, ReadOnce(context)), embedding)
        other = context.clone()
        other[0, 2] += 1
        changed = (unet.time_embedding(t, None, other) - embedding).abs().amax(1)
    assert changed[0] > 1e-3 and changed[1] == 0


def test_without_a_context_there_is_none_to_pool() -> None:
    with pytest.raises(ValueError, match="pooled_context=True: there is no context to pool"):
        build(heads=2, pooled_context=True)


def test_an_untrained_unet_predicts_zero() -> None:
    unet = UNet(**BASE, heads=1)
    assert not unet(*inputs(unet)).any()


def test_dropout_acts_in_training_only() -> None:
    unet = build(heads=1, dropout=0.5)
    arguments = inputs(unet)
    assert not torch.equal(unet(*arguments), unet(*arguments))
    unet.eval()
    assert torch.equal(unet(*arguments), unet(*arguments))


def test_sinusoids_start_at_one_and_zero_and_have_unit_length() -> None:
    embedding = sinusoidal(torch.tensor([0, 1, 999]), 8)
    assert embedding[0].tolist() == [1.0] * 4 + [0.0] * 4
    torch.testing.assert_close(embedding.square().sum(1), torch.full((3,), 4.0))
    assert embedding[1, 0].item() == pytest.approx(math.cos(1))
    assert embedding[1, 4].item() == pytest.approx(math.sin(1))


def test_bad_shapes_are_named() -> None:
    unet = build(heads=2, context_width=10)
    z_t, t, context = inputs(unet)
    assert context is not None
    with pytest.raises(ValueError, match=r"\[2, 3, 8, 8\].*\[B, 4, H, W\]"):
        unet(z_t[:, :3], t, context)
    with pytest.raises(ValueError, match="divisible by 2"):
        unet(z_t[..., :7], t, context)
    with pytest.raises(ValueError, match=r"t has shape \[1\]"):
        unet(z_t, t[:1], context)
    for wrong in (None, context[..., :9], context[:1], context[0]):
        with pytest.raises(ValueError, match=r"\[2, L, 10\]"):
            unet(z_t, t, wrong)
    with pytest.raises(ValueError, match="leave context out"):
        build(heads=2)(z_t, t, context)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one"),
        ({"heads": 2, "head_channels": 8}, "exactly one"),
        ({"heads": 5}, "divisor"),
        ({"heads": 1, "attention_downsamplings": (2, 4)}, r"\[4\].*\[1, 2\]"),
        ({"heads": 1, "channel_multipliers": (), "attention_downsamplings": ()}, "at least one multiplier"),
        ({"heads": 1, "channels": 15}, "channels=15"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(**{**BASE, **settings})


@pytest.mark.parametrize("blocks", [True, ["down.1", "up"], ["middle"]])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_changes_no_gradient(dropout: float, blocks: bool | list[str]) -> None:
    gradients = []
    for activation_checkpointing in (None, blocks):
        torch.manual_seed(0)
        unet = UNet(
            4, 4, 32, (1, 2), 1, (2,), heads=2, context_width=8, dropout=dropout,
            activation_checkpointing=activation_checkpointing,
        )  # fmt: skip
        for p in unet.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=0.1)
        torch.manual_seed(1)
        unet(torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 3, 8)).square().sum().backward()
        gradients.append([p.grad for p in unet.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
