"""Vector quantisation (van den Oord et al. 2017, "Neural Discrete Representation Learning")."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Quantised(NamedTuple):
    """latents: the nearest entries, float [B, C, h, w], with the straight-through gradient. indices: int64 [B, h, w].
    loss: codebook and commitment loss, mean over everything, float []."""

    latents: Tensor
    indices: Tensor
    loss: Tensor


class Codebook(nn.Module):
    """entries vectors of the latent's width; a latent is replaced by the nearest of them at each position.

    commitment: weight of the loss that holds the encoder to its entries (beta in Eq. 3). published_loss: puts that
    weight on the codebook's loss instead, as the code that was published with LDM does.
    """

    def __init__(self, entries: int, width: int, commitment: float = 0.25, published_loss: bool = False) -> None:
        super().__init__()
        self.commitment = commitment
        self.published_loss = published_loss
        self.entries = nn.Embedding(entries, width)
        nn.init.uniform_(self.entries.weight, -1.0 / entries, 1.0 / entries)

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the entry nearest to z at each position: float [B, C, h, w] -> int64 [B, h, w]."""
        # In float32 whatever the module computes in: differences between near entries drown in bfloat16.
        flat = z.float().movedim(1, -1).flatten(0, 2)  # [B*h*w, C]
        entries = self.entries.weight.float()  # [K, C]
        # |z - e|^2 without |z|^2, which is the same for every entry.
        distances = torch.addmm(entries.square().sum(1), flat, entries.t(), alpha=-2.0)  # [B*h*w, K]
        return distances.argmin(1).view(len(z), *z.shape[2:])

    def look_up(self, indices: Tensor) -> Tensor:
        """Entries of indices: int64 [B, h, w] -> float [B, C, h, w]."""
        return self.entries(indices).movedim(-1, 1)

    def perplexity(self, indices: Tensor) -> Tensor:
        """How many entries are in use, each counted by its share of indices int64 [B, h, w]: float [], 1 to entries.

        exp of the entropy of the shares.
        """
        counts = self._counts(indices)
        return torch.special.entr(counts / counts.sum()).sum().exp()

    def usage(self, indices: Tensor) -> Tensor:
        """The share of all entries that are among indices int64 [B, h, w]: float [], up to 1."""
        return (self._counts(indices) > 0).float().mean()

    def _counts(self, indices: Tensor) -> Tensor:
        """How often each entry is among indices: int64 [K]."""
        found = indices.flatten()
        # Not torch.bincount, which makes a GPU's host wait, and can't be counted without data by `ldm plan`.
        return found.new_zeros(self.entries.num_embeddings).scatter_add_(0, found, torch.ones_like(found))

    def forward(self, z: Tensor) -> Quantised:
        """z float [B, C, h, w] quantised; the gradient of the result reaches z unchanged (Sec. 3.2, Eq. 3)."""
        indices = self.nearest(z.detach())
        e = self.look_up(indices)  # [B, C, h, w]
        towards_z, towards_e = (e - z.detach()).square().mean(), (e.detach() - z).square().mean()
        if self.published_loss:
            loss = towards_e + self.commitment * towards_z
        else:
            loss = towards_z + self.commitment * towards_e
        return Quantised(z + (e - z).detach(), indices, loss)
