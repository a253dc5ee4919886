"""The training objective: losses sample by sample, their weights, and their place among the timesteps."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.objective import LOSSES, SnrWeight, by_timestep_decile, l2
from models.prediction import PREDICTIONS
from models.schedule import linear


@pytest.mark.parametrize(("name", "reference"), [("l2", F.mse_loss), ("l1", F.l1_loss)])
class TestLosses:
    def test_it_is_the_mean_error_of_each_sample(self, name: str, reference: type) -> None:
        output, target = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
        loss = LOSSES[name](output, target)
        for i in range(3):
            torch.testing.assert_close(loss[i], reference(output[i], target[i]))

    def test_low_precision_is_summed_in_float32(self, name: str, reference: type) -> None:
        output, target = torch.randn(2, 2, 4, 32, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
        loss = LOSSES[name](output, target)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, LOSSES[name](output.double(), target.double()), rtol=1e-5, atol=0.0)

    def test_shapes_are_not_broadcast(self, name: str, reference: type) -> None:
        with pytest.raises(ValueError, match=r"\[2, 4, 8, 8\].*\[1, 4, 8, 8\]"):
            LOSSES[name](torch.zeros(2, 4, 8, 8), torch.zeros(1, 4, 8, 8))


def test_min_snr_weight_is_gamma_over_snr_where_the_latent_is_nearly_clean() -> None:
    alpha_bar = torch.tensor([0.01, 0.5, 0.8, 0.95, 0.999], dtype=torch.float64)
    snr = alpha_bar / (1 - alpha_bar)
    weight = SnrWeight(gamma=5.0, power=1.0).of(alpha_bar, PREDICTIONS["epsilon"])
    torch.testing.assert_close(weight * snr, snr.clamp(max=5.0))
    assert weight[0] == weight[1] == weight[2] == 1.0
    assert weight[4] < weight[3] < 1.0


def test_the_debiased_weight_is_one_over_the_root_of_snr() -> None:
    alpha_bar = torch.tensor([0.01, 0.5, 0.8, 0.999], dtype=torch.float64)
    snr = alpha_bar / (1 - alpha_bar)
    weight = SnrWeight(gamma=None, power=0.5).of(alpha_bar, PREDICTIONS["epsilon"])
    torch.testing.assert_close(weight, 1 / snr.sqrt())
    limited = SnrWeight(gamma=2.0, power=0.5).of(alpha_bar, PREDICTIONS["epsilon"])
    torch.testing.assert_close(limited[:2], weight[:2])
    torch.testing.assert_close(limited[2:] * snr[2:], torch.full((2,), 2.0**0.5, dtype=torch.float64))


@pytest.mark.parametrize("snr_weight", [SnrWeight(5.0, 1.0), SnrWeight(None, 0.5), SnrWeight(25.0, 0.3)])
def test_the_same_error_weighs_the_same_whatever_is_predicted(snr_weight: SnrWeight) -> None:
    schedule = linear(0.00085, 0.012)
    t = torch.tensor([0, 100, 300, 600, 999])
    generator = torch.Generator().manual_seed(0)
    z_0, eps, error = torch.randn(3, 5, 8, generator=generator, dtype=torch.float64)
    alpha, sigma = schedule.roots(t, z_0)
    wrong_eps = (alpha * z_0 + sigma * eps - alpha * (z_0 + error)) / sigma  # goes with z_0 + error at the same z_t

    def weighed(name: str) -> Tensor:
        prediction = PREDICTIONS[name]
        right = prediction.target(z_0, eps, alpha, sigma)
        wrong = prediction.target(z_0 + error, wrong_eps, alpha, sigma)
        return (wrong - right).square().mean(1) * snr_weight.of(schedule.alpha_bar[t], prediction)

    torch.testing.assert_close(weighed("v"), weighed("epsilon"))
    torch.testing.assert_close(weighed("z_0"), weighed("epsilon"))


@pytest.mark.parametrize(("gamma", "power"), [(0.0, 1.0), (-1.0, 1.0), (5.0, -0.5), (float("nan"), 1.0)])
def test_a_weight_that_cannot_be_is_refused(gamma: float, power: float) -> None:
    with pytest.raises(ValueError, match=f"gamma={gamma} .* power={power}"):
        SnrWeight(gamma, power)


def test_deciles_hold_every_loss_once_by_its_timestep() -> None:
    t = torch.tensor([0, 99, 100, 999, 950])
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    deciles = by_timestep_decile(losses, t, 1000)
    assert deciles.shape == (10, 2)
    assert deciles[:, 0].tolist() == [3, 4, 0, 0, 0, 0, 0, 0, 0, 24]
    assert deciles[:, 1].tolist() == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert by_timestep_decile(losses, t // 100, 10)[:, 1].sum() == 5
    assert by_timestep_decile(l2(losses[:, None], losses[:, None] + 1), t, 1000)[9].tolist() == [2, 2]
