"""The noise schedule against the published ones and against what defines it."""

from typing import Any

import pytest
import torch

from models.schedule import NoiseSchedule

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
    torch.testing.assert_close(NoiseSchedule(*PUBLISHED[name]).alpha_bar.float(), published, rtol=0.0, atol=1e-7)


def test_betas_run_from_start_to_end_in_float64() -> None:
    schedule = NoiseSchedule(0.00085, 0.012)
    assert schedule.betas.dtype == schedule.alpha_bar.dtype == torch.float64
    assert len(schedule.betas) == schedule.steps == 1000
    assert schedule.betas[0].item() == pytest.approx(0.00085, rel=1e-12)
    assert schedule.betas[-1].item() == pytest.approx(0.012, rel=1e-12)
    assert (schedule.alpha_bar.diff() < 0).all()


def test_add_noise_mixes_each_sample_by_its_own_timestep() -> None:
    schedule = NoiseSchedule(0.00085, 0.012)
    t = torch.tensor([0, 500, 999])
    z_0, eps = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z_t = schedule.add_noise(z_0, eps, t)
    for i, step in enumerate(t.tolist()):
        alpha_bar = schedule.alpha_bar[step].item()
        torch.testing.assert_close(z_t[i], alpha_bar**0.5 * z_0[i] + (1 - alpha_bar) ** 0.5 * eps[i])


def test_noising_keeps_the_variance_of_unit_data() -> None:
    schedule = NoiseSchedule(0.00085, 0.012)
    z_0, eps = torch.randn(2, 4, 100_000, generator=torch.Generator().manual_seed(0))
    z_t = schedule.add_noise(z_0, eps, torch.tensor([0, 300, 600, 999]))
    torch.testing.assert_close(z_t.var(1), torch.ones(4), rtol=0.0, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_has_the_dtype_of_the_latents(dtype: torch.dtype) -> None:
    z_0 = torch.ones(1, 2, 2, 2, dtype=dtype)
    assert NoiseSchedule(0.00085, 0.012).add_noise(z_0, z_0, torch.tensor([10])).dtype == dtype


@pytest.mark.parametrize("settings", [(0.0, 0.1), (0.2, 0.1), (0.1, 1.0), (0.1, 0.2, 0)])
def test_settings_out_of_range_are_named(settings: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=f"beta_start={settings[0]}"):
        NoiseSchedule(*settings)
