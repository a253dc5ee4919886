"""A text-to-image model as a classifier: the words under which it foretells the noise best (Li et al. 2023).

Source: "Your Diffusion Model is Secretly a Zero-Shot Classifier", Algorithm 1 and Sec. 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from evaluation.generate import ImageModel
from models.conditioners import Condition
from models.objective import LOSSES
from models.prediction import as_denoiser


@dataclass(frozen=True)
class Stage:
    """After `pairs` pairs (t, eps) in all, only the `keep` best classes go on."""

    pairs: int
    keep: int


def check_stages(stages: Sequence[Stage]) -> None:
    """Raises ValueError unless pairs grow, what is kept shrinks, and one is left in the end."""
    if not stages or stages[0].pairs < 1:
        raise ValueError("give at least one stage, of at least one pair")
    for before, after in pairwise(stages):
        if after.pairs <= before.pairs or after.keep >= before.keep:
            raise ValueError(f"stage {after} comes after {before}: it needs more pairs, and to keep fewer")
    if stages[-1].keep != 1:
        raise ValueError(f"the last stage keeps {stages[-1].keep}: it must keep 1")


def timesteps(count: int, steps: int) -> Tensor:
    """The t of `count` pairs, int64: the first few of them are spread as evenly over 0 ... steps - 1 as all are.

    They are the van der Corput sequence, whose beginnings are evenly spread, so that stages need no plan of their own.
    """
    bits = (count - 1).bit_length()
    reversed_bits = [int(f"{j:0{bits}b}"[::-1], 2) for j in range(count)]
    return torch.tensor([int((r + 0.5) / 2**bits * steps) for r in reversed_bits])


class DiffusionClassifier:
    """Chooses among candidates the one with the least mean error of the noise foretold.

    All candidates of an image see the same pairs (t, eps), which takes most of the errors' spread out of the choice.
    The templates take turns: pair number j has template j mod T, for all candidates, at no further cost.

    Args:
        image_model: conditioned on captions alone.
        prompts: tokens of each candidate in each template, int64 [candidates, T, L].
        stages: see `check_stages`.
        seed: with an image's number gives its noise.
        loss: of models.objective.LOSSES; l2 in the paper, l1 for some of its data sets.
        batch_size: evaluations of the network at a time.

    Raises ValueError on stages or a loss that can't be.
    """

    def __init__(
        self, image_model: ImageModel, prompts: Tensor, stages: Sequence[Stage], seed: int, loss: str, batch_size: int
    ) -> None:
        check_stages(stages)
        if loss not in LOSSES:
            raise ValueError(f"loss={loss}: choose one of {', '.join(LOSSES)}")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: it must be at least 1")
        self._image_model, self._stages, self._seed, self._loss = image_model, stages, seed, LOSSES[loss]
        self._batch_size, self._templates = batch_size, prompts.shape[1]
        self._timesteps = timesteps(stages[-1].pairs, image_model.schedule.steps)
        nothing = image_model.nothing["caption"].expand(1, self._templates, -1)
        # Candidate k in template i is row k T + i; behind the last one comes no words at all.
        self._conditions, self._nothing = self._read(torch.cat([prompts, nothing]).flatten(0, 1)), len(prompts)

    @torch.no_grad()
    def choose(self, image: Tensor, number: int, candidates: Sequence[int]) -> int:
        """The place in `candidates`, numbers of prompts, of the one that explains the image best.

        image: uint8 [3, H, W]. number: of the image, which its noise depends on.
        """
        latent = self._encode(image)
        totals = torch.zeros(len(candidates), dtype=torch.float64)
        remaining, done = torch.arange(len(candidates)), 0
        for stage in self._stages:
            if len(remaining) > stage.keep:
                rows = [candidates[place] for place in remaining.tolist()]
                totals[remaining] += self._errors(latent, number, rows, done, stage.pairs).sum(1)
                remaining = remaining[totals[remaining].argsort(stable=True)[: stage.keep]]
                done = stage.pairs
        return int(remaining[0])

    @torch.no_grad()
    def errors(self, image: Tensor, number: int, candidates: Sequence[int]) -> Tensor:
        """Mean error over all pairs under each candidate, float64 [len(candidates)]; arguments as of `choose`."""
        return self._errors(self._encode(image), number, candidates, 0, self._stages[-1].pairs).mean(1)

    def scores(self, image: Tensor, number: int, candidates: Sequence[int]) -> Tensor:
        """By how much the error under each candidate is less than without words, float64 [len(candidates)].

        So scores of several images can be compared: an image that is hard to foretell is so without words, too.
        Arguments as of `choose`.
        """
        errors = self.errors(image, number, [*candidates, self._nothing])
        return errors[-1] - errors[:-1]

    def _errors(self, latent: Tensor, number: int, candidates: Sequence[int], first: int, last: int) -> Tensor:
        """Errors under each candidate of the pairs first ... last - 1: float64 [candidates, last - first]."""
        model = self._image_model
        eps = self._noise(latent, number)[first:last]  # [n, C, h, w]
        t = self._timesteps[first:last].to(latent.device)
        alpha, sigma = model.schedule.roots(t, eps)
        z_t = alpha * latent + sigma * eps  # [n, C, h, w]
        template = torch.arange(first, last) % self._templates
        rows = torch.tensor(candidates)[:, None] * self._templates + template  # [candidates, n]
        pairs = torch.arange(last - first).expand_as(rows).flatten()
        found = []
        for row, pair in zip(rows.flatten().split(self._batch_size), pairs.split(self._batch_size), strict=True):
            condition = Condition(**{name: p[row.to(p.device)] for name, p in self._conditions.parts().items()})
            denoiser = as_denoiser(partial(_outputs, model, condition), model.prediction, model.schedule)
            pair = pair.to(latent.device)
            found.append(self._loss(denoiser(z_t[pair], t[pair]).eps, eps[pair]).double().cpu())
        errors = torch.cat(found).reshape(rows.shape)
        if not errors.isfinite().all():
            raise ValueError(f"image {number}: errors are infinite, or none at all (NaN); check the run's weights")
        return errors

    def _encode(self, image: Tensor) -> Tensor:
        """The mean of q(z | x), [1, C, h, w]."""
        first_stage, device = self._image_model.first_stage, self._image_model.device
        shape = first_stage.latent_shape(*image.shape[-2:])
        return first_stage.encode(image[None].to(device), torch.zeros(1, *shape, device=device))

    def _noise(self, latent: Tensor, number: int) -> Tensor:
        """Of all pairs of an image; drawn on the CPU, so that every device has the same."""
        generator = torch.Generator().manual_seed((self._seed << 32) + number)
        return torch.randn(self._stages[-1].pairs, *latent.shape[1:], generator=generator).to(latent.device)

    @torch.no_grad()
    def _read(self, tokens: Tensor) -> Condition:
        parts = [self._image_model.condition({"caption": part}).parts() for part in tokens.split(self._batch_size)]
        return Condition(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def _outputs(image_model: ImageModel, condition: Condition, z_t: Tensor, t: Tensor) -> Tensor:
    return image_model.model.denoise(z_t, t, condition)
