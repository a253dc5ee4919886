"""The gradients of first-stage training are those of the published loss, written down in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import cast

import pytest
import torch
from torch import nn

from data.batch import Batch
from models.autoencoder import AutoencoderKL, AutoencoderVQ
from models.discriminator import PatchDiscriminator
from training import noise
from training.engine import Engine
from training.modules import ReconstructionModule
from training.tasks.autoencoder import AutoencoderTask

SHAPE = (4, 8, 8)
WEIGHT = 0.75


class PlainEngine:
    """As an Engine, without DeepSpeed and without taking the step."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.module(*inputs)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> bool:
        return False

    def whole(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
        return nullcontext()


def build(kind: str, adversary_start: int) -> AutoencoderTask:
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(8, (1, 2), 1, 4) if kind == "kl" else AutoencoderVQ(8, (1, 2), 1, 4, 32)
    module, discriminator = ReconstructionModule(autoencoder, kind == "kl"), PatchDiscriminator(3, 8, 1)
    with torch.no_grad():
        module.log_variance.fill_(0.3 if kind == "kl" else 0.0)
    return AutoencoderTask(
        cast(Engine, PlainEngine(module)),
        cast(Engine, PlainEngine(discriminator)),
        module,
        discriminator,
        deepcopy(discriminator),
        None,
        SHAPE,
        accumulation=1,
        summed=kind == "kl",
        regulariser_weight=0.5,
        adversary_weight=WEIGHT,
        adversary_start=adversary_start,
        revival=None,
        sources=(),
        seed=3,
    )


def batch() -> Batch:
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Batch(images, {}, ["", ""], torch.tensor([5, 9]), torch.zeros(2, dtype=torch.int64))


def published_loss(task: AutoencoderTask, adversary: bool) -> torch.Tensor:
    """LDM App. G as the published code has it: KL summed with a learned variance, VQ as means over everything."""
    module, x = task.module, batch().images.float() / 127.5 - 1
    autoencoder = module.autoencoder
    if isinstance(autoencoder, AutoencoderKL):
        posterior = autoencoder.encode(x)
        reconstruction = autoencoder.decode(posterior.sample(noise.normal(3, "posterior", [5, 9], SHAPE)))
        error = (x - reconstruction).abs() / module.log_variance.exp() + module.log_variance
        nll, regulariser = error.sum() / len(x), posterior.kl().sum() / len(x)
    else:
        assert isinstance(autoencoder, AutoencoderVQ)
        z = autoencoder.encode(x)
        reconstruction, regulariser = autoencoder.decode(z), autoencoder.quantise(z).loss
        nll = (x - reconstruction).abs().mean()
    loss = nll + 0.5 * regulariser
    if adversary:
        hinge = -task.discriminator(reconstruction).mean()
        norms = [
            torch.autograd.grad(term, autoencoder.last_layer, retain_graph=True)[0].norm() for term in (nll, hinge)
        ]
        loss = loss + WEIGHT * (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4) * hinge
    return loss


@pytest.mark.parametrize("adversary", [False, True])
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_gradients_are_those_of_the_published_loss(kind: str, adversary: bool) -> None:
    task, wanted = build(kind, adversary_start=7), build(kind, adversary_start=7)
    metrics = task.train_step(iter([batch()]), 7 if adversary else 6, 1e-3)
    assert ("adversary_weight" in metrics) == adversary
    published_loss(wanted, adversary).backward()
    for (name, p), q in zip(task.module.named_parameters(), wanted.module.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None) == (kind == "vq" and name == "log_variance"), name
        if p.grad is not None and q.grad is not None:
            scale = q.grad.abs().max().item()
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5 * scale + 1e-6, msg=name)


@pytest.mark.parametrize(
    ("kind", "statistics"), [("kl", {"kl"}), ("vq", {"codebook_loss", "codebook_perplexity", "codebook_usage"})]
)
def test_each_kind_tells_its_own_statistics(kind: str, statistics: set[str]) -> None:
    metrics = build(kind, adversary_start=1).train_step(iter([batch()]), 0, 1e-3)
    assert metrics.keys() == {"loss", "reconstruction", "reconstruction_loss", "log_variance"} | statistics
    assert not any(value.requires_grad for value in metrics.values())
