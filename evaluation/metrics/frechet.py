"""Fréchet distance between two sets of features, from streaming statistics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.linalg import lapack
from torch import Tensor

ACCURACY = 1e-7
"""Relative, of a distance: the quick way is taken where it is expected to be as accurate."""


class FeatureStatistics:
    """Count, sum and sum of outer products of feature vectors, in float64.

    Sums add up, so statistics of parts that were gathered by different ranks or in different runs can be
    merged or all-reduced into the statistics of the whole.

    Args:
        width: number of features D per image.
        device: where the sums are kept.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.width = width
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.sum = torch.zeros(width, dtype=torch.float64, device=device)
        self.outer = torch.zeros(width, width, dtype=torch.float64, device=device)

    def update(self, features: Tensor) -> None:
        """Adds features, float [B, D].

        Raises ValueError on another shape and on values that are not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.width:
            raise ValueError(f"features have shape {tuple(features.shape)}; expected [B, {self.width}]")
        x = features.to(self.sum.device, torch.float64)  # [B, D]
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).any(dim=1).sum())
            raise ValueError(
                f"{bad} of {len(x)} feature vectors are not finite; check the images they came from "
                "and the network's weights"
            )
        self.count += len(x)
        self.sum += x.sum(dim=0)
        self.outer += x.T @ x

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Statistics of both sets together. Raises ValueError when the widths differ."""
        if other.width != self.width:
            raise ValueError(f"cannot merge statistics of {other.width} features into {self.width} features")
        merged = FeatureStatistics(self.width, self.sum.device)
        for total, ours, theirs in zip(merged.state, self.state, other.state, strict=True):
            total += ours + theirs.to(total.device)
        return merged

    def reduce(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Replaces each sum by `all_reduce(sum)`, its sum over all ranks."""
        for tensor in self.state:
            tensor.copy_(all_reduce(tensor))

    @property
    def state(self) -> tuple[Tensor, Tensor, Tensor]:
        """The sums: count [], sum [D], outer [D, D], all float64."""
        return self.count, self.sum, self.outer

    @property
    def mean(self) -> Tensor:
        """Mean feature vector, float64 [D]. Raises ValueError without samples."""
        self._need(1)
        return self.sum / self.count

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, float64 [D, D]. Raises ValueError with fewer than two samples."""
        self._need(2)
        mean = self.mean
        covariance = (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return (covariance + covariance.T) / 2

    def _need(self, samples: int) -> None:
        if self.count < samples:
            raise ValueError(f"the statistics hold {int(self.count)} samples; at least {samples} are needed")


def _factor(covariance: Tensor) -> Tensor:
    """A with A Aᵀ = covariance, float64 [D, rank], by Cholesky's method with pivoting.

    It ends at the covariance's rank, below the number of features where there are fewer samples: what is left by
    then is rounding error, whose square roots would add up to a visible distance.
    """
    width = len(covariance)
    floor = float(covariance.diagonal().max()) * width * torch.finfo(torch.float64).eps
    lower, pivots, rank, _ = lapack.dpstrf(covariance.numpy(), tol=floor, lower=1)
    factor = torch.empty(width, rank, dtype=torch.float64)
    factor[torch.from_numpy(pivots).long() - 1] = torch.from_numpy(lower).tril()[:, :rank]
    return factor


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared Fréchet distance of the Gaussians with the statistics' means and covariances.

    d² = |mu_a - mu_b|² + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^½). With S = A Aᵀ the last trace is the sum of
    the singular values of Aᵀ B, which stays real and accurate for covariances without full rank.

    Raises ValueError when the widths differ or either has fewer than two samples.
    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", Eq. 6.
    """
    if a.width != b.width:
        raise ValueError(f"statistics of {a.width} and of {b.width} features cannot be compared; use one network")
    sigma_a, sigma_b = a.covariance.cpu(), b.covariance.cpu()
    difference = a.mean.cpu() - b.mean.cpu()
    apart = difference.dot(difference) + sigma_a.trace() + sigma_b.trace()
    product = _factor(sigma_a).T @ _factor(sigma_b)  # [rank, rank]
    overlap, error = _sum_of_singular_values(product)
    if 2 * error > ACCURACY * (apart - 2 * overlap):
        overlap = torch.linalg.svdvals(product).sum()
    return max(0.0, float(apart - 2 * overlap))


def _sum_of_singular_values(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of a matrix's singular values, as roots of the eigenvalues of its square, and the error to expect of it.

    Several times faster than a singular value decomposition; but each eigenvalue is off by the rounding of the
    largest, independently of the others, which is much where a small one's root is taken.
    """
    if matrix.numel() == 0:  # a set of equal features: a covariance of rank 0
        return matrix.new_zeros(()), matrix.new_zeros(())
    square = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    eigenvalues = torch.linalg.eigvalsh(square).clamp_min(0)
    rounding = torch.finfo(torch.float64).eps * eigenvalues[-1]
    roots = eigenvalues.sqrt()
    return roots.sum(), torch.minimum(rounding / roots, rounding.sqrt()).norm()
