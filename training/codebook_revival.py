"""Entries of a codebook that no latent comes near to are put where latents are, so that they are trained again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from training import noise
from training.checkpoint_files import BASE_KINDS
from training.distributed import Distributed
from training.engine import Engine

ENTRIES = "autoencoder.codebook.entries.weight"
USED = "codes_used"


class CodebookRevival:
    """At every `every`-th step, the entries that no latent was replaced by since the last time become latents of that
    step's samples (the random restarts of Dhariwal et al. 2020, "Jukebox").

    engine: of a ReconstructionModule with a codebook of so many `entries`. Which latents they become follows from the
    seed, the step and the samples' numbers, so any number of ranks does the same. Moments of such an entry begin anew,
    and its averages with it.
    """

    def __init__(
        self, engine: Engine, entries: int, every: int, global_batch: int, ranks: Distributed, seed: int
    ) -> None:
        self.every = every
        self._engine = engine
        self._global_batch = global_batch
        self._ranks = ranks
        self._seed = seed
        self._used = torch.zeros(entries, dtype=torch.bool, device=engine.device)  # by any rank, since the last time
        self._step_used = torch.zeros_like(self._used)  # by this rank
        self._seen: list[tuple[list[int], torch.Tensor]] = []

    def see(self, numbers: torch.Tensor, z: torch.Tensor, indices: torch.Tensor) -> None:
        """A micro-batch of the step. numbers: of its samples, int64 [B]; z: their latents, float [B, C, h, w]; indices:
        of the entries that took their places, int64 [B, h, w]."""
        self._step_used[indices.flatten()] = True
        self._seen.append((numbers.tolist(), z))

    def end_step(self, step: int) -> torch.Tensor | None:
        """After the update of a step. Returns how many entries were revived, float []; None where none are due. A
        collective."""
        self._used |= self._ranks.all_reduce_sum(self._step_used.int()) > 0
        seen, self._seen = self._seen, []
        self._step_used.zero_()
        if (step + 1) % self.every:
            return None
        dead = self._used.logical_not().nonzero().flatten()
        self._used.zero_()
        if len(dead):
            self._put(dead, self._drawn(dead.tolist(), seen, step))
        return torch.tensor(float(len(dead)), device=self._used.device)

    def _drawn(self, dead: list[int], seen: list[tuple[list[int], torch.Tensor]], step: int) -> torch.Tensor:
        """A latent of the step's samples for each of these entries, float32 [len(dead), C]."""
        z = seen[0][1]
        samples = noise.integers(self._seed, f"revived sample, step {step}", dead, self._global_batch)
        places = noise.integers(self._seed, f"revived place, step {step}", dead, z[0, 0].numel())
        latents = torch.zeros(len(dead), z.shape[1], device=z.device)
        for numbers, z in seen:
            for number, latent in zip(numbers, z.float().flatten(2), strict=True):  # [C, h*w]
                mine = (samples == number % self._global_batch).to(z.device)
                latents[mine] = latent[:, places.to(z.device)[mine]].t()
        return self._ranks.all_reduce_sum(latents)  # each sample is one rank's

    @torch.no_grad()
    def _put(self, dead: torch.Tensor, latents: torch.Tensor) -> None:
        chosen = torch.zeros(len(self._used), latents.shape[1], dtype=torch.bool, device=latents.device)
        values = torch.zeros(chosen.shape, device=latents.device)
        chosen[dead], values[dead] = True, latents
        with self._engine.writable():
            for fragment in self._engine.fragments():
                if fragment.parameter != ENTRIES:
                    continue
                where = chosen.flatten()[fragment.start : fragment.stop]
                new = values.flatten()[fragment.start : fragment.stop][where]
                for kind, tensor in fragment.tensors.items():
                    is_moment = kind in BASE_KINDS and kind != "param"
                    tensor[where.to(tensor.device)] = 0.0 if is_moment else new.to(tensor.device)
        self._engine.publish_weights()

    def state(self) -> dict[str, Any]:
        """Which entries were used since the last time, for a checkpoint's manifest."""
        return {USED: np.packbits(self._used.cpu().numpy()).tobytes().hex()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave; nothing from a run that revived none till now."""
        if USED in state:
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(state[USED]), np.uint8), count=len(self._used))
            self._used.copy_(torch.from_numpy(bits.astype(bool)))
