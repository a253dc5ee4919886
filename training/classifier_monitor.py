"""How well a classifier of noisy latents names held-out samples while it trains."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from data.batch import Batch
from data.inputs.label import LABEL
from models.noisy_classifier import NoisyClassifier
from training.checkpoint_files import AVERAGE
from training.distributed import Distributed
from training.tasks.noisy_classifier import NoisyClassifierTask

JUDGED_TOGETHER = 50


class NoisyClassifierMonitor:
    """Loss and accuracy of the averaged weights on all held-out samples, every `every` steps and at the last.

    model: holds those weights, beside the one in training. Each held-out sample has the same noise and timestep at
    every look.
    """

    def __init__(
        self,
        task: NoisyClassifierTask,
        model: NoisyClassifier,
        held_out: Batch,
        every: int,
        steps: int,
        ranks: Distributed,
    ) -> None:
        self.task = task
        self.model = model
        self.held_out = held_out
        self.every = every
        self.steps = steps
        self.ranks = ranks

    @torch.no_grad()
    def look(self, step: int) -> dict[str, float]:
        """Metrics `eval/loss`, `eval/accuracy` and, by tenths of the timesteps, `eval/accuracy_decile_K`."""
        if step == 0 or (step % self.every and step != self.steps):
            return {}
        for name, tensor in self.task.engine.gather(AVERAGE):
            self.model.get_parameter(name).copy_(tensor)
        rows = range(self.ranks.rank, len(self.held_out), self.ranks.world)
        sums = torch.zeros(11, 3, dtype=torch.float64)  # by decile, and of all: losses, right answers, samples
        for first in range(0, len(rows), JUDGED_TOGETHER):
            some = list(rows[first : first + JUDGED_TOGETHER])
            moments = self.task.first_stage.moments(self.held_out.images[some].to(self.ranks.device))
            z_t, t = self.task.noised(moments, self.held_out.numbers[some].tolist())
            labels = self.held_out.inputs[LABEL][some].to(self.ranks.device)
            logits = self.model(z_t, t)  # [B, classes]
            losses, right = F.cross_entropy(logits, labels, reduction="none"), (logits.argmax(1) == labels).float()
            deciles = self.task.deciles(losses, right, t)
            counted = (
                torch.cat([deciles["loss_decile"][:, :1], deciles["accuracy_decile"]], 1).double().cpu()
            )  # [10, 3]
            sums += torch.cat([counted, counted.sum(0, keepdim=True)])
        sums = self.ranks.all_reduce_sum(sums)
        means = (sums[:, :2] / sums[:, 2:]).tolist()
        found = {"eval/loss": means[10][0], "eval/accuracy": means[10][1]}
        return found | {f"eval/accuracy_decile_{k}": means[k][1] for k in range(10) if sums[k, 2]}
