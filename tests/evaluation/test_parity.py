"""The measures are those of clean-fid and torchmetrics too, on the same pictures and the same network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evaluation.image_folder import ImageFolder
from evaluation.measure import Measured, measure
from evaluation.metrics.kernel_distance import KernelDistance
from evaluation.metrics.metric import Sizes
from evaluation.metrics.psnr import psnr
from evaluation.metrics.ssim import ssim
from evaluation.pictures import write_png
from tests.evaluation.networks import Projection, batches, pictures

clean_fid = pytest.importorskip("cleanfid.fid", reason="clean-fid isn't installed: it is of the extra `test`")
image = pytest.importorskip("torchmetrics.image", reason="torchmetrics isn't installed: it is of the extra `test`")
functional = pytest.importorskip("torchmetrics.functional.image")

GENERATED, REAL = pictures(40, 0), pictures(40, 1) // 2 + 60
CLOSE = 1e-4


class Output(nn.Module):
    """An output of the network, of uint8 [B, 3, 4, 4]."""

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.name, self.num_features, self.network = name, width, Projection()

    def forward(self, images: Tensor) -> Tensor:
        return self.network.see(images)[self.name]


@pytest.fixture(scope="module")
def ours() -> Measured:
    """KID of all images at once, and the score of one split, so that nothing is drawn."""
    network = Projection()
    metrics = {"kid": KernelDistance(network, "features", Sizes(40, 40), 40, subsets=1, subset_size=40)}
    return measure(batches(GENERATED, 7), batches(REAL, 9), network, 40, 1, metrics)


def test_distances_are_torchmetrics(ours: Measured) -> None:
    features = Output("features", 8)
    theirs = (
        image.FrechetInceptionDistance(features),
        image.KernelInceptionDistance(features, subsets=1, subset_size=40),
    )
    for metric in theirs:
        metric.update(GENERATED, real=False)
        metric.update(REAL, real=True)
    frechet, kernel = (metric.compute() for metric in theirs)
    assert ours.frechet == pytest.approx(float(frechet), rel=CLOSE)
    assert ours.others["KID"].value == pytest.approx(float(kernel[0]), rel=CLOSE)


def test_the_score_is_torchmetrics(ours: Measured) -> None:
    theirs = image.InceptionScore(Output("logits", 5), splits=1)
    theirs.update(GENERATED)
    assert ours.score == pytest.approx(float(theirs.compute()[0]), rel=CLOSE)


def test_psnr_and_ssim_are_torchmetrics() -> None:
    x, y = pictures(3, 2, 24).float(), pictures(3, 3, 24).float()
    theirs = functional.peak_signal_noise_ratio(x, y, data_range=255.0, dim=(1, 2, 3), reduction="none")
    assert psnr(x, y).tolist() == pytest.approx(theirs.tolist(), rel=CLOSE)
    alike = 0.8 * x + 0.2 * y
    found = functional.structural_similarity_index_measure(
        alike, x, data_range=255.0, reduction="none", return_full_image=True
    )
    # It takes the mean with mirrored edges too; ours, and scikit-image's, is where the window of 11 fits.
    expected = found[1][..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    assert ssim(alike, x).tolist() == pytest.approx(expected.tolist(), rel=CLOSE)


def test_folders_are_measured_as_clean_fid_measures_them(tmp_path: Path) -> None:
    """From files on, by its reading, its statistics and its root of a matrix."""
    for name, images in (("generated", GENERATED), ("real", REAL)):
        for number, picture in enumerate(images):
            write_png(tmp_path / name / f"{number:03d}.png", picture)
    network = Projection()
    generated, real = (ImageFolder(tmp_path / name, None, 7) for name in ("generated", "real"))
    metrics = {"kid": KernelDistance(network, "features", Sizes(40, 40), 40, subsets=1, subset_size=40)}
    found = measure(generated.batches(), real.batches(), network, 40, 1, metrics)

    def features(name: str) -> np.ndarray:
        return clean_fid.get_folder_features(
            str(tmp_path / name), Output("features", 8), num_workers=0, device=torch.device("cpu"),
            mode="legacy_tensorflow", verbose=False,
        )  # fmt: skip

    theirs = features("generated"), features("real")
    moments = [moment for x in theirs for moment in (x.mean(axis=0), np.cov(x, rowvar=False))]
    assert found.frechet == pytest.approx(clean_fid.frechet_distance(*moments), rel=CLOSE)
    kernel = clean_fid.kernel_distance(*theirs, num_subsets=1, max_subset_size=40)
    assert found.others["KID"].value == pytest.approx(kernel, rel=CLOSE)
