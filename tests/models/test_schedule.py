"""The noise schedule against the published ones and against what defines it."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from models.schedule import NoiseSchedule, cosine, linear

# Published schedules: linear_start and linear_end of the models they belong to.
PUBLISHED = {
    "text2img": (0.00085, 0.012),
    "vq": (0.0015, 0.0195),
    "layout": (0.0015, 0.0205),
    "sr": (0.0015, 0.0155),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_alpha_bar_is_the_published_one(golden: Any, name: str) -> None:
    published = golden.tensors("samplers")[f"alphas_cumprod.{name}"]
    torch.testing.assert_close(linear(*PUBLISHED[name]).alpha_bar.float(), published, rtol=0.0, atol=1e-7)


def test_betas_run_from_start_to_end_in_float64() -> None:
    schedule = linear(0.00085, 0.012)
    assert schedule.betas.dtype == schedule.alpha_bar.dtype == torch.float64
    assert len(schedule.betas) == schedule.steps == 1000
    assert schedule.betas[0].item() == pytest.approx(0.00085, rel=1e-12)
    assert schedule.betas[-1].item() == pytest.approx(0.012, rel=1e-12)
    assert (schedule.alpha_bar.diff() < 0).all()


def test_add_noise_mixes_each_sample_by_its_own_timestep() -> None:
    schedule = linear(0.00085, 0.012)
    t = torch.tensor([0, 500, 999])
    z_0, eps = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z_t = schedule.add_noise(z_0, eps, t)
    for i, step in enumerate(t.tolist()):
        alpha_bar = schedule.alpha_bar[step].item()
        torch.testing.assert_close(z_t[i], alpha_bar**0.5 * z_0[i] + (1 - alpha_bar) ** 0.5 * eps[i])


def test_noising_keeps_the_variance_of_unit_data() -> None:
    schedule = linear(0.00085, 0.012)
    z_0, eps = torch.randn(2, 4, 100_000, generator=torch.Generator().manual_seed(0))
    z_t = schedule.add_noise(z_0, eps, torch.tensor([0, 300, 600, 999]))
    torch.testing.assert_close(z_t.var(1), torch.ones(4), rtol=0.0, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_has_the_dtype_of_the_latents(dtype: torch.dtype) -> None:
    z_0 = torch.ones(1, 2, 2, 2, dtype=dtype)
    assert linear(0.00085, 0.012).add_noise(z_0, z_0, torch.tensor([10])).dtype == dtype


@pytest.mark.parametrize("settings", [(0.0, 0.1), (0.2, 0.1), (0.1, 1.0), (0.1, 0.2, 0)])
def test_settings_out_of_range_are_named(settings: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=f"beta_start={settings[0]}"):
        linear(*settings)


def test_cosine_is_the_published_function_of_time() -> None:
    # Nichol & Dhariwal 2021, Eq. 17: alpha_bar = f(t) / f(0), f(t) = cos²((t / T + s) / (1 + s) · π / 2), s = 0.008.
    schedule = cosine()
    for t in (0, 250, 500, 998):
        f_t, f_0 = (math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in (t + 1, 0))
        assert schedule.alpha_bar[t].item() == pytest.approx(f_t / f_0, rel=1e-9)
    assert schedule.betas[-1] == 0.999
    assert schedule.betas.max() == 0.999
    assert schedule.alpha_bar.dtype == torch.float64 and len(schedule.alpha_bar) == 1000


@pytest.mark.parametrize("make", [partial(linear, 0.00085, 0.012), cosine], ids=["linear", "cosine"])
def test_rescaling_to_zero_terminal_snr_shifts_and_scales_the_root_of_alpha_bar(
    make: Callable[..., NoiseSchedule],
) -> None:
    plain, rescaled = make(), make(zero_terminal_snr=True)
    assert rescaled.zero_terminal_snr and not plain.zero_terminal_snr
    assert rescaled.alpha_bar[-1] == 0.0
    assert rescaled.betas[0] == plain.betas[0]
    assert (rescaled.alpha_bar.diff() < 0).all()
    # Affine: all differences grow by the same factor.
    ratio = rescaled.alpha_bar.sqrt().diff() / plain.alpha_bar.sqrt().diff()
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


@pytest.mark.parametrize("settings", [{"offset": -0.1}, {"highest_beta": 1.0}, {"steps": 0}])
def test_settings_of_cosine_out_of_range_are_named(settings: dict[str, Any]) -> None:
    [(name, value)] = settings.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        cosine(**settings)


def test_other_betas_are_refused() -> None:
    for betas in ([0.1, 0.0], [0.1, 1.1], [1.0, 0.5], [0.1, math.nan], [], [[0.1]]):
        with pytest.raises(ValueError, match=r"betas of shape .*above 0 and below 1"):
            NoiseSchedule(torch.tensor(betas, dtype=torch.float64))
    with pytest.raises(ValueError, match="steps=1: zero_terminal_snr needs at least two"):
        linear(0.1, 0.1, steps=1, zero_terminal_snr=True)


def test_roots_are_those_of_each_sample_s_timestep() -> None:
    schedule = linear(0.00085, 0.012)
    t = torch.tensor([0, 999])
    alpha, sigma = schedule.roots(t, torch.zeros(2, 4, 8, 8))
    assert alpha.shape == sigma.shape == (2, 1, 1, 1)
    assert alpha.dtype == torch.float32
    torch.testing.assert_close(alpha.flatten().double(), schedule.alpha_bar[t].sqrt(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(2, 1, 1, 1))
