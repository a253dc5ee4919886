"""The training objective is the squared error of the noise, sample by sample."""

import pytest
import torch

from models.objective import epsilon_loss, min_snr_weight


def test_it_is_the_mean_squared_error_of_each_sample() -> None:
    prediction, eps = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    loss = epsilon_loss(prediction, eps)
    for i in range(3):
        torch.testing.assert_close(loss[i], torch.nn.functional.mse_loss(prediction[i], eps[i]))


def test_low_precision_is_summed_in_float32() -> None:
    prediction, eps = torch.randn(2, 2, 4, 32, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    loss = epsilon_loss(prediction, eps)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, epsilon_loss(prediction.double(), eps.double()), rtol=1e-5, atol=0.0)


def test_shapes_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\[2, 4, 8, 8\].*\[1, 4, 8, 8\]"):
        epsilon_loss(torch.zeros(2, 4, 8, 8), torch.zeros(1, 4, 8, 8))


def test_min_snr_weight_is_gamma_over_snr_where_the_latent_is_nearly_clean() -> None:
    alpha_bar = torch.tensor([0.01, 0.5, 0.8, 0.95, 0.999], dtype=torch.float64)
    snr = alpha_bar / (1 - alpha_bar)
    weight = min_snr_weight(alpha_bar, 5.0)
    torch.testing.assert_close(weight * snr, snr.clamp(max=5.0))
    assert weight[0] == weight[1] == weight[2] == 1.0
    assert weight[4] < weight[3] < 1.0


def test_min_snr_weight_refuses_a_gamma_that_is_not_positive() -> None:
    with pytest.raises(ValueError, match="gamma=0"):
        min_snr_weight(torch.tensor([0.5]), 0.0)
