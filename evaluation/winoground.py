"""Winoground: two captions of the same words, two images, and which belongs to which (Thrush et al. 2022)."""

from __future__ import annotations

from torch import Tensor


def winoground_scores(scores: Tensor) -> dict[str, float]:
    """Shares of the examples that are right, by Eq. 1 to 3 of the paper: text, image and group score.

    Text: for each image its caption scores higher than the other. Image: for each caption its image does. Group: both.
    Equal scores are wrong. By chance 1/4, 1/4 and 1/6.

    scores: [N, captions, images], float [N, 2, 2], of which [:, i, i] belong together; higher is better. A diffusion
    model's errors can be compared over captions as they are, and over images only once an image's own difficulty, its
    error without a caption, is taken off. Raises ValueError on other shapes, no example, and NaN.
    """
    if scores.ndim != 3 or scores.shape[1:] != (2, 2) or len(scores) == 0:
        raise ValueError(f"scores have shape {list(scores.shape)}: give [N, 2, 2], for at least one example")
    if scores.isnan().any():
        raise ValueError("scores hold NaN: whoever gave them failed")
    text = (scores[:, 0, 0] > scores[:, 1, 0]) & (scores[:, 1, 1] > scores[:, 0, 1])
    image = (scores[:, 0, 0] > scores[:, 0, 1]) & (scores[:, 1, 1] > scores[:, 1, 0])
    found = {"text": text, "image": image, "group": text & image}
    return {name: float(right.double().mean()) for name, right in found.items()}
