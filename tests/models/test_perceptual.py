"""LPIPS agrees with the package it comes from; its trunk is random here, as nothing is downloaded."""

from pathlib import Path

import lpips
import pytest
import torch

from models.guidance import post_hoc
from models.perceptual import PerceptualLoss
from tests.models.samplers.known import SCHEDULE, gaussian_denoiser

pytestmark = pytest.mark.filterwarnings("ignore:The parameter 'pretrained'", "ignore:Arguments other than")


@pytest.fixture(scope="module")
def reference() -> lpips.LPIPS:
    torch.manual_seed(0)
    with torch.device("meta"):  # the trunk's unused classifier alone would take half a gigabyte
        net = lpips.pretrained_networks.vgg16(pretrained=None)
    net = net.to_empty(device="cpu")
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lpips.pretrained_networks, "vgg16", lambda **_: net)
        return lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)


@pytest.fixture(scope="module")
def weights(reference: lpips.LPIPS, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "features.pt"
    # net.slice2.7.weight is feature 7 of the trunk
    state = {name.split(".", 1)[1]: w for name, w in reference.net.state_dict().items()}
    torch.save({f"features.{name}": w for name, w in state.items()}, path)
    return path


def images(seed: int) -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_distance_is_that_of_the_lpips_package(reference: lpips.LPIPS, weights: Path) -> None:
    loss = PerceptualLoss(weights)
    with torch.no_grad():
        expected = reference(images(0), images(1)).flatten()
        torch.testing.assert_close(loss(images(0), images(1)), expected, rtol=1e-5, atol=1e-7)
    assert (expected > 0).all()


def test_without_learned_heads_it_is_the_sum_of_what_cosines_lack(reference: lpips.LPIPS, weights: Path) -> None:
    x, y = images(0), images(1)
    with torch.no_grad():
        pairs = zip(*(reference.net(reference.scaling_layer(image)) for image in (x, y)), strict=True)
        expected = sum((1 - torch.cosine_similarity(a, b)).mean((1, 2)) for a, b in pairs)
        weighted, alike = PerceptualLoss(weights).distances(x, y)
        torch.testing.assert_close(alike, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(weighted, PerceptualLoss(weights)(x, y))


def test_distance_to_itself_is_zero_and_the_order_does_not_matter(weights: Path) -> None:
    loss = PerceptualLoss(weights)
    assert loss(images(0), images(0)).tolist() == [0.0, 0.0]
    torch.testing.assert_close(loss(images(0), images(1)), loss(images(1), images(0)))


def test_only_the_image_takes_a_gradient(weights: Path) -> None:
    loss = PerceptualLoss(weights)
    x = images(0).requires_grad_()
    loss(x, images(1)).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in loss.parameters())


def test_the_gradient_is_finite_where_all_features_are_rectified_away(weights: Path) -> None:
    loss = PerceptualLoss(weights)
    with torch.no_grad():
        biases = dict(loss.trunk.named_parameters())
        biases["0.bias"].fill_(-1e4)
        biases["2.bias"].fill_(-1.0)
    x = images(0).requires_grad_()
    loss(x, images(1)).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_missing_and_foreign_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        PerceptualLoss(tmp_path / "nowhere.pt")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt.*conv\.weight"):
        PerceptualLoss(tmp_path / "other.pt")


def test_bad_shapes_are_named(weights: Path) -> None:
    loss = PerceptualLoss(weights)
    for x, y in [((1, 3, 32, 32), (1, 3, 16, 16)), ((1, 1, 32, 32),) * 2, ((1, 3, 8, 32),) * 2]:
        with pytest.raises(ValueError, match="at least 16"):
            loss(torch.zeros(x), torch.zeros(y))


def test_it_guides_a_denoiser_to_an_image(weights: Path) -> None:
    perceptual, wanted = PerceptualLoss(weights), images(0)
    denoiser, z_t, t = gaussian_denoiser(0.5), images(1), torch.tensor([100, 300])

    def distance(shown: torch.Tensor) -> torch.Tensor:
        return perceptual(shown, wanted)

    guided = post_hoc(denoiser, lambda z: z, distance, SCHEDULE, scale=10.0)(z_t, t)
    assert (distance(guided.z_0) < distance(denoiser(z_t, t).z_0)).all()
