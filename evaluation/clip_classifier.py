"""CLIP as a classifier (Radford et al. 2021, Sec. 3.1.4): what a diffusion classifier is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evaluation.metrics.metric import Pictures
from evaluation.open_clip_features import OpenClip


class ClipClassifier:
    """Chooses the candidate whose embedding is nearest to the image's, by the cosine.

    prompts: each candidate in each template; its embedding is the mean of theirs.
    """

    def __init__(self, network: OpenClip, prompts: Sequence[Sequence[str]]) -> None:
        self._network = network
        means = torch.stack([network.embed_texts(templates).mean(0) for templates in prompts])  # [candidates, D]
        self._words = means / means.norm(dim=1, keepdim=True)

    def choose(self, image: Tensor, number: int, candidates: Sequence[int]) -> int:
        """The place of the choice in `candidates`, numbers of prompts.

        image: uint8 [3, H, W]. number: of the image, which is no matter here.
        """
        return int(self.scores(image, number, candidates).argmax())

    def scores(self, image: Tensor, number: int, candidates: Sequence[int]) -> Tensor:
        """The cosine of each candidate's embedding and the image's, float32 [candidates]."""
        pictures = Pictures(torch.tensor([number]), image[None])
        features = self._network.outputs(pictures)["features"][0]  # [D]
        return self._words[list(candidates)] @ features / features.norm()
