"""Laws of the classifier of noisy latents."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.noisy_classifier import NoisyClassifier

BASE: dict[str, Any] = {
    "in_channels": 4,
    "classes": 5,
    "channels": 16,
    "channel_multipliers": (1, 3),
    "residual_blocks": 1,
    "attention_downsamplings": (2,),
    "heads": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "mean": {},
    "attention": {"pool": "attention"},
    "as ADM's": {"pool": "attention", "resblock_updown": True, "scale_shift_norm": True},
}
T = torch.tensor([3, 700])


@pytest.fixture(params=list(VARIANTS))
def classifier(request: pytest.FixtureRequest) -> NoisyClassifier:
    """Without zero-initialised layers, which would hide what lies behind them."""
    torch.manual_seed(0)
    classifier = NoisyClassifier(**{**BASE, **VARIANTS[request.param]})
    for p in classifier.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return classifier


def latents(side: int = 8) -> Tensor:
    return torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(1))


def test_gradient_reaches_every_parameter(classifier: NoisyClassifier) -> None:
    classifier(latents(), T).square().sum().backward()
    # A constant added to every key cancels in the softmax: half of that bias has no effect.
    untouched = [n for n, p in classifier.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-5]
    assert untouched == []


def test_samples_do_not_influence_each_other_at_any_size(classifier: NoisyClassifier) -> None:
    for side in (4, 8, 12):
        both, second = classifier(latents(side), T), classifier(latents(side)[1:], T[1:])
        assert both.shape == (2, 5)
        torch.testing.assert_close(both[1:], second, rtol=0, atol=1e-5)


def test_time_and_latents_matter(classifier: NoisyClassifier) -> None:
    logits = classifier(latents(), T)
    assert (classifier(latents(), T + 100) - logits).abs().max() > 1e-3
    assert (classifier(latents().flip(0), T) - logits).abs().max() > 1e-3


def test_an_untrained_classifier_holds_every_class_for_equally_likely() -> None:
    assert not NoisyClassifier(**BASE)(latents(), T).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention_downsamplings": (4,)}, r"\[4\].*\[1, 2\]"),
        ({"channel_multipliers": (), "attention_downsamplings": ()}, "at least one multiplier"),
        ({"channels": 15}, "channels=15"),
        ({"classes": 1}, "classes=1"),
        ({"pool": "max"}, "pool=max.*mean, attention"),
        ({"heads": 5}, "divisor"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoisyClassifier(**{**BASE, **settings})


def test_bad_shapes_are_named() -> None:
    classifier = NoisyClassifier(**BASE)
    for wrong in (latents()[:, :3], latents()[..., :7], latents()[0]):
        with pytest.raises(ValueError, match=r"\[B, 4, H, W\] with H and W divisible by 2"):
            classifier(wrong, T)
    with pytest.raises(ValueError, match=r"t has shape \[1\]"):
        classifier(latents(), T[:1])
