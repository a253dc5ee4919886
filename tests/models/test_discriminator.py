"""Laws of the patch discriminator and its losses."""

import pytest
import torch
from torch import nn

from models.discriminator import PatchDiscriminator, hinge_discriminator_loss, hinge_generator_loss


def test_it_has_the_published_size() -> None:
    assert sum(p.numel() for p in PatchDiscriminator().parameters()) == 2_765_633


def test_each_logit_sees_the_published_patch_of_70_pixels() -> None:
    discriminator = PatchDiscriminator(channels=4)
    for i, module in enumerate(discriminator.net):
        if isinstance(module, nn.BatchNorm2d):
            discriminator.net[i] = nn.Identity()  # through its statistics every logit sees the whole batch
    x = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = discriminator(x)
    logits[0, 0, 7, 7].backward()
    assert x.grad is not None
    seen = x.grad.abs().sum((0, 1)).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70, 70]


def test_gradient_reaches_every_parameter() -> None:
    discriminator = PatchDiscriminator(channels=8, layers=2)
    discriminator(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert [name for name, p in discriminator.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_image_gives_one_logit_and_smaller_ones_are_refused(layers: int) -> None:
    discriminator = PatchDiscriminator(channels=4, layers=layers)
    side = discriminator.smallest_image
    assert discriminator(torch.zeros(2, 3, side, side)).shape == (2, 1, 1, 1)
    with pytest.raises(ValueError, match=f"at least {side}"):
        discriminator(torch.zeros(1, 3, side, side - 1))


def test_bad_settings_and_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="layers=0"):
        PatchDiscriminator(layers=0)
    with pytest.raises(ValueError, match=r"\[1, 4, 32, 32\]"):
        PatchDiscriminator(channels=4)(torch.zeros(1, 4, 32, 32))


def test_hinge_losses_ignore_what_is_already_right_by_the_margin() -> None:
    right, wrong = torch.full((2, 1, 3, 3), 5.0), torch.full((2, 1, 3, 3), -2.0)
    assert hinge_discriminator_loss(real=right, fake=-right).item() == 0.0
    assert hinge_discriminator_loss(real=wrong, fake=-wrong).item() == 3.0
    assert hinge_discriminator_loss(real=wrong, fake=-right).item() == 1.5
    assert hinge_generator_loss(right).item() == -5.0
