"""Random numbers belong to samples."""

from __future__ import annotations

import torch

from training import noise


def test_a_sample_s_noise_does_not_depend_on_its_batch() -> None:
    together = noise.normal(3, "noise", [5, 6, 7, 8], (2, 4))
    apart = torch.cat([noise.normal(3, "noise", [n], (2, 4)) for n in (5, 6, 7, 8)])
    assert torch.equal(together, apart)


def test_seeds_purposes_and_samples_are_independent() -> None:
    draws = [noise.normal(s, p, [n], (4,)) for s in (0, 1) for p in ("noise", "posterior") for n in (0, 1)]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 8


def test_timesteps_and_dropout_have_their_distributions() -> None:
    numbers = range(20_000)
    t = noise.integers(0, "timestep", numbers, 1000)
    assert t.min() == 0 and t.max() == 999
    assert abs(t.float().mean().item() - 499.5) < 6  # three standard errors
    dropped = noise.chances(0, "caption_dropout", numbers, 0.1).float().mean().item()
    assert abs(dropped - 0.1) < 0.007


def test_normal_noise_is_standard() -> None:
    eps = noise.normal(0, "noise", range(500), (4, 8, 8))
    assert abs(eps.mean().item()) < 0.01
    assert abs(eps.std().item() - 1) < 0.01
