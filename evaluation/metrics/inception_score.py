"""Inception score from streaming sums, so that no logits are kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

# torch-fidelity's default seed; with it the splits, and so the score, are the same as there.
SHUFFLE_SEED = 2020


class InceptionScore:
    """exp(E_x KL(p(y|x) || p(y))) in `splits` parts: their mean and standard deviation.

    KL(p || q) averaged over a split is mean(Σ p log p) - Σ q log q with q = mean(p), so a split needs only
    two sums. Which split image n belongs to depends on n and `total` alone: ranks can work on any share.

    Args:
        total: number of images in the whole evaluation.
        classes: number of logits K.
        splits: number of parts the images are dealt into, 10 in the paper.
        device: where the sums are kept.

    Raises ValueError when there are fewer than two images for each split: one alone scores 1, whatever it is.
    Source: Salimans et al., "Improved Techniques for Training GANs", Sec. 4.
    """

    def __init__(self, total: int, classes: int, splits: int = 10, device: torch.device | str = "cpu") -> None:
        if total < 2 * splits:
            raise ValueError(
                f"{total} images cannot be dealt into {splits} splits, two or more to each; use more images"
            )
        self.total, self.classes = total, classes
        bounds = [i * total // splits for i in range(splits + 1)]
        position_split = np.repeat(np.arange(splits), np.diff(bounds))
        order = np.random.RandomState(SHUFFLE_SEED).permutation(total)
        split = np.empty(total, dtype=np.int64)
        split[order] = position_split
        self._split = torch.from_numpy(split).to(device)  # [total]: split of image n
        self.count = torch.zeros(splits, dtype=torch.float64, device=device)
        self.sum = torch.zeros(splits, classes, dtype=torch.float64, device=device)
        self.negative_entropy = torch.zeros(splits, dtype=torch.float64, device=device)

    def update(self, logits: Tensor, numbers: Tensor) -> None:
        """Adds logits, float [B, K], of the images with these numbers, int64 [B] in [0, total).

        Raises ValueError on other shapes, on numbers out of range and on logits that are not finite.
        """
        if logits.ndim != 2 or logits.shape[1] != self.classes or numbers.shape != logits.shape[:1]:
            raise ValueError(
                f"logits {tuple(logits.shape)} and numbers {tuple(numbers.shape)} do not fit [B, {self.classes}], [B]"
            )
        if bool((numbers < 0).any()) or bool((numbers >= self.total).any()):
            raise ValueError(f"image numbers must lie in 0..{self.total - 1}; got {numbers.tolist()}")
        if not bool(torch.isfinite(logits).all()):
            raise ValueError("logits are not finite; check the images they came from")
        log_p = logits.to(self.sum.device, torch.float64).log_softmax(dim=1)  # [B, K]
        p = log_p.exp()
        split = self._split[numbers.to(self.sum.device)]  # [B]
        self.count.index_add_(0, split, torch.ones_like(split, dtype=torch.float64))
        self.sum.index_add_(0, split, p)
        self.negative_entropy.index_add_(0, split, (p * log_p).sum(dim=1))

    def reduce(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Replaces each sum by `all_reduce(sum)`, its sum over all ranks."""
        for tensor in self.state:
            tensor.copy_(all_reduce(tensor))

    @property
    def state(self) -> tuple[Tensor, Tensor, Tensor]:
        """The sums: count [S], sum [S, K], negative_entropy [S], float64."""
        return self.count, self.sum, self.negative_entropy

    def compute(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits.

        Raises ValueError when not every image was added exactly once.
        """
        if int(self.count.sum()) != self.total:
            raise ValueError(f"{int(self.count.sum())} of {self.total} images were added; add each exactly once")
        q = self.sum / self.count[:, None]  # [S, K]
        divergence = self.negative_entropy / self.count - torch.xlogy(q, q).sum(dim=1)  # [S]
        scores = divergence.exp()
        return float(scores.mean()), float(scores.std(correction=0))
