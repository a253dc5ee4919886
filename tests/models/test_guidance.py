"""Laws of guidance: classifier-free, by a classifier, by an image, and by what of a picture is known."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.autoencoder import AutoencoderKL
from models.conditioners import Condition
from models.guidance import Distance, classifier, classifier_free, downsampling, inpainting, post_hoc, squared_error
from models.latent_diffusion import FirstStage
from models.prediction import PREDICTIONS, Denoiser, as_denoiser
from models.samplers import Sampler
from models.samplers.ddim import ddim
from models.samplers.ddpm import ddpm
from models.samplers.dpm_solver import dpm_solver, solver_timesteps
from models.samplers.plms import plms
from models.schedule import NoiseSchedule, linear
from tests.models.samplers.known import gaussian_denoiser

SCHEDULE = linear(0.00085, 0.012)
ZERO_TERMINAL = linear(0.00085, 0.012, zero_terminal_snr=True)

Z_T = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
T = torch.tensor([1, 2, 3])
VALUES = torch.arange(1.0, 4.0).view(3, 1, 1, 1)
CONDITIONAL, UNCONDITIONAL = Condition(context=VALUES), Condition(context=-VALUES)


class Counting:
    """A denoiser that depends on all it is given, and counts its passes and samples."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.batches.append(len(z_t))
        return z_t.sin() * t[:, None, None, None] + condition.context**3


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.5, 7.5])
def test_it_extrapolates_from_unconditional_through_conditional(scale: float) -> None:
    plain = Counting()
    eps_u, eps_c = plain(Z_T, T, UNCONDITIONAL), plain(Z_T, T, CONDITIONAL)
    guided = classifier_free(Counting(), CONDITIONAL, UNCONDITIONAL, scale)(Z_T, T)
    torch.testing.assert_close(guided, (1 - scale) * eps_u + scale * eps_c)


def test_it_takes_one_doubled_pass_and_at_scale_one_a_plain_one() -> None:
    denoiser = Counting()
    classifier_free(denoiser, CONDITIONAL, UNCONDITIONAL, 3.0)(Z_T, T)
    assert denoiser.batches == [6]
    plain = classifier_free(denoiser, CONDITIONAL, UNCONDITIONAL, 1.0)(Z_T, T)
    assert denoiser.batches == [6, 3]
    assert torch.equal(plain, denoiser(Z_T, T, CONDITIONAL))


def test_one_unconditional_condition_serves_all_samples() -> None:
    one = Condition(context=-VALUES[:1])
    shared = classifier_free(Counting(), CONDITIONAL, one, 3.0)(Z_T, T)
    repeated = classifier_free(Counting(), CONDITIONAL, one.repeated(3), 3.0)(Z_T, T)
    assert torch.equal(shared, repeated)


def tilting_classifier(schedule: NoiseSchedule, slope: float, deviation: float) -> Callable[[Tensor, Tensor], Tensor]:
    """log p(y | z_t), up to a constant, of class 1 where p(y | z_0) ~ exp(slope z_0) and z_0 ~ N(0, deviation^2)."""

    def log_probabilities(z_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.roots(t, z_t)
        expected = alpha * deviation**2 * z_t / (alpha**2 * deviation**2 + sigma**2)  # of z_0
        return torch.cat([-slope * expected, slope * expected], 1)

    return log_probabilities


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_a_classifier_moves_a_gaussian_by_slope_times_variance(scale: float) -> None:
    # N(0, d²) times exp(scale slope z) is N(scale slope d², d²).
    slope, deviation = 0.8, 0.5
    z_T = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    labels = torch.tensor([1, 1, 1])
    log_probabilities = tilting_classifier(ZERO_TERMINAL, slope, deviation)
    guided = classifier(gaussian_denoiser(deviation, ZERO_TERMINAL), log_probabilities, labels, scale, ZERO_TERMINAL)
    z_0 = ddim(guided, z_T, ZERO_TERMINAL, 1000)
    unguided = ddim(gaussian_denoiser(deviation, ZERO_TERMINAL), z_T, ZERO_TERMINAL, 1000)
    moved = torch.full_like(z_T, scale * slope * deviation**2)
    torch.testing.assert_close(z_0 - unguided, moved, rtol=0.01, atol=0.0)


def test_each_sample_is_led_to_its_own_class() -> None:
    z_T = torch.zeros(2, 1, dtype=torch.float64)
    log_probabilities = tilting_classifier(SCHEDULE, 1.0, 0.5)
    guided = classifier(gaussian_denoiser(0.5), log_probabilities, torch.tensor([0, 1]), 1.0, SCHEDULE)
    down, up = ddim(guided, z_T, SCHEDULE, 20)
    assert up > 0.1
    torch.testing.assert_close(down, -up)


def test_a_classifier_that_does_not_fit_is_named() -> None:
    denoiser, z_t, t = gaussian_denoiser(0.5), torch.zeros(2, 1, dtype=torch.float64), torch.tensor([1, 1])
    with pytest.raises(ValueError, match=r"labels \[3\]"):
        classifier(denoiser, lambda z, t: z.expand(2, 5), torch.tensor([0, 1, 2]), 1.0, SCHEDULE)(z_t, t)
    with pytest.raises(ValueError, match=r"answer \[2\]"):
        classifier(denoiser, lambda z, t: z.sum(1), torch.tensor([0, 1]), 1.0, SCHEDULE)(z_t, t)


def curved_denoiser(schedule: NoiseSchedule) -> Denoiser:
    """Depends on every number it is given, in a way that has a derivative worth testing."""
    return as_denoiser(
        lambda z_t, t: z_t.sin() + z_t.mean(1, keepdim=True) * t[:, None, None, None] / 1000, PREDICTIONS["v"], schedule
    )


def decode(z: Tensor) -> Tensor:
    """[B, 4, 2, 2] to [B, 3, 8, 8]."""
    mixed = torch.einsum("oc,bchw->bohw", torch.linspace(-1, 1, 12, dtype=z.dtype).view(3, 4), z)
    return F.interpolate(mixed, scale_factor=4, mode="bilinear").tanh()


PICTURE = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize(
    "distance",
    [squared_error(PICTURE), squared_error(downsampling(4)(PICTURE), downsampling(4))],
    ids=["identity", "downsampling"],
)
def test_the_post_hoc_gradient_is_the_slope_of_the_distance(distance: Distance) -> None:
    denoiser, z_t = curved_denoiser(SCHEDULE), Z_T.double()

    def energy(z: Tensor) -> Tensor:
        return distance(decode(denoiser(z, T).z_0))

    with torch.no_grad():  # as in a sampler
        guided = post_hoc(denoiser, decode, distance, SCHEDULE, scale=0.7)(z_t, T)
        plain = denoiser(z_t, T)
    slopes = torch.zeros_like(z_t)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in z_t.shape[1:])):
        c, h, w = place.tolist()
        nudge = torch.zeros_like(z_t)
        nudge[:, c, h, w] = 1e-6
        slopes[:, c, h, w] = (energy(z_t + nudge) - energy(z_t - nudge)) / 2e-6
    _, sigma = SCHEDULE.roots(T, z_t)
    torch.testing.assert_close(guided.eps, plain.eps + 0.7 * sigma * slopes, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(SCHEDULE.add_noise(*guided, T), z_t)  # the two still explain z_t
    assert not guided.eps.requires_grad and not guided.z_0.requires_grad
    assert slopes.abs().min() > 0


def test_a_gaussian_guider_leads_to_the_posterior_s_mean() -> None:
    # A prior N(0, d²) seen as y with unit variance: the mean is y d² / (d² + 1). The guide takes the estimate of z_0
    # for z_0 itself, so that it is exact only where little noise is left: compare the last step's gradient.
    z_t, t = torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([0])
    wanted = torch.tensor([[1.0]], dtype=torch.float64)
    guided = post_hoc(gaussian_denoiser(0.5), lambda z: z, squared_error(wanted), SCHEDULE)(z_t, t)
    plain = gaussian_denoiser(0.5)(z_t, t)
    posterior = 0.25 / (0.25 + SCHEDULE.betas[0] / SCHEDULE.alpha_bar[0])  # d z_0 / d z_t, times alpha
    _, sigma = SCHEDULE.roots(t, z_t)
    expected = sigma * (plain.z_0 - wanted) * posterior / SCHEDULE.alpha_bar[0].sqrt()
    torch.testing.assert_close(guided.eps - plain.eps, expected)


def test_no_guidance_is_the_denoiser_bit_for_bit() -> None:
    denoiser = curved_denoiser(SCHEDULE)
    z_t = Z_T.double()
    for guided in (
        classifier(denoiser, lambda z, t: z.flatten(1).log_softmax(1), T, 0.0, SCHEDULE),
        post_hoc(denoiser, decode, squared_error(PICTURE), SCHEDULE, scale=0.0),
        inpainting(denoiser, z_t, torch.zeros(1, 1, 1, 1, dtype=torch.float64), SCHEDULE),
    ):
        for mine, plain in zip(guided(z_t, T), denoiser(z_t, T), strict=True):
            assert torch.equal(mine, plain)


def test_at_zero_snr_guidance_waits() -> None:
    denoiser, t = curved_denoiser(ZERO_TERMINAL), torch.tensor([999, 998, 5])
    z_t = Z_T.double()
    guided = post_hoc(denoiser, decode, squared_error(PICTURE), ZERO_TERMINAL)(z_t, t)
    for mine, plain in zip(guided, denoiser(z_t, t), strict=True):
        assert mine.isfinite().all()
        assert [torch.equal(a, b) for a, b in zip(mine, plain, strict=True)] == [True, False, False]


def test_a_first_stage_s_decoder_can_guide() -> None:
    torch.manual_seed(0)
    first_stage = FirstStage(AutoencoderKL(16, (1, 2), 1, 4), scale=0.5)
    distance = squared_error(torch.rand(3, 3, 4, 4))

    def decode(z: Tensor) -> Tensor:
        return first_stage.autoencoder.decode(z / first_stage.scale)

    denoiser = curved_denoiser(SCHEDULE)
    guided = post_hoc(denoiser, decode, distance, SCHEDULE, scale=0.01)(Z_T, T)
    with torch.no_grad():
        assert (distance(decode(guided.z_0)) < distance(decode(denoiser(Z_T, T).z_0))).all()


def test_pictures_and_distances_that_do_not_fit_are_named() -> None:
    denoiser, z_t = curved_denoiser(SCHEDULE), Z_T.double()
    with pytest.raises(ValueError, match=r"T\(images\) has shape \[3, 3, 8, 8\] and what is wanted \[3, 3, 4, 4\]"):
        post_hoc(denoiser, decode, squared_error(PICTURE[:, :, :4, :4]), SCHEDULE)(z_t, T)
    with pytest.raises(ValueError, match=r"distances have shape \[\]: 3 samples need \[3\]"):
        post_hoc(denoiser, decode, lambda images: images.sum(), SCHEDULE)(z_t, T)


def coupled_denoiser(correlation: float, schedule: NoiseSchedule) -> Denoiser:
    """Exact for pairs of pixels [B, 1, 1, 2], Gaussian with deviation 1 and this correlation."""
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)

    def network(z_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.roots(t, z_t[:, 0])  # each [B, 1, 1]
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(2))
        return (gain @ z_t.view(-1, 2, 1)).view_as(z_t)

    return as_denoiser(network, PREDICTIONS["z_0"], schedule)


def draw(step: int) -> Tensor:
    return torch.randn(2, 1, 1, 2, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


class TestInpainting:
    known = torch.tensor([1.5, -2.0], dtype=torch.float64).view(2, 1, 1, 1).expand(2, 1, 1, 2)
    keep = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 1, 1, 2)
    z_T = draw(100)

    def paint(self, sampler: Sampler, correlation: float) -> Tensor:
        denoiser = inpainting(coupled_denoiser(correlation, SCHEDULE), self.known, self.keep, SCHEDULE)
        return sampler(denoiser, self.z_T, SCHEDULE, 20, draw)

    @pytest.mark.parametrize(
        "sampler", [ddpm, partial(ddim, spacing="trailing"), partial(ddim, spacing="trailing", eta=1)]
    )
    def test_the_kept_part_is_the_known_latent(self, sampler: Sampler) -> None:
        torch.testing.assert_close(self.paint(sampler, 0.9)[..., :1], self.known[..., :1])

    @pytest.mark.parametrize(
        ("sampler", "first"),
        [(ddim, 951), (plms, 951), (dpm_solver, solver_timesteps(20)[0])],
        ids=["ddim", "plms", "dpm"],
    )
    def test_it_has_the_noise_that_these_samplers_leave_and_no_other(self, sampler: Sampler, first: int) -> None:
        # The noise that explains z_T beside the known latent stays the same, down to timestep 0.
        alpha, sigma = SCHEDULE.alpha_bar[first].sqrt(), (1 - SCHEDULE.alpha_bar[first]).sqrt()
        eps = (self.z_T - alpha * self.known) / sigma
        left = SCHEDULE.add_noise(self.known, eps, torch.tensor([0, 0]))
        torch.testing.assert_close(self.paint(sampler, 0.9)[..., :1], left[..., :1])

    @pytest.mark.parametrize("sampler", [ddim, ddpm, plms, dpm_solver])
    def test_the_rest_follows_it_as_far_as_the_denoiser_couples_them(self, sampler: Sampler) -> None:
        free = sampler(coupled_denoiser(0.0, SCHEDULE), self.z_T, SCHEDULE, 20, draw)
        torch.testing.assert_close(self.paint(sampler, 0.0)[..., 1], free[..., 1])
        moved = self.paint(sampler, 0.9)[..., 1] - self.paint(sampler, 0.0)[..., 1]
        assert moved[0] > 0.3 and moved[1] < -0.3, "towards 1.5, and towards -2"

    def test_latents_that_do_not_fit_are_named(self) -> None:
        denoiser = coupled_denoiser(0.0, SCHEDULE)
        with pytest.raises(ValueError, match=r"keep has shape \[2, 1, 1, 3\]: it must fit known, \[2, 1, 1, 2\]"):
            inpainting(denoiser, self.known, torch.zeros(2, 1, 1, 3), SCHEDULE)
        with pytest.raises(ValueError, match=r"z_t has shape \[1, 1, 1, 2\] and the known latent \[2, 1, 1, 2\]"):
            inpainting(denoiser, self.known, self.keep, SCHEDULE)(self.z_T[:1], torch.tensor([5]))
